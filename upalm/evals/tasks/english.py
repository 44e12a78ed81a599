"""The 26 English tasks of Table 8 (U-PaLM section 11.2): 21 zero-shot ranked, 5 one-shot generated.

Prompts follow GPT-3's (Brown et al. 2020, appendix G). Files: those of llm-foundry's local data, and the published
ones of SuperGLUE, ANLI, RACE, StoryCloze and SQuAD 2 as JSON lines; docs/evals.md has names and columns.
"""

import re

from upalm.evals import text_metrics
from upalm.evals.benchmark_files import BenchmarkRow
from upalm.evals.task import Generated, Question, Ranked, Source, Task

_NO_YES = (" no", " yes")


def _choice(row: BenchmarkRow, prompt: str, choices: tuple[str, ...], gold: str = "gold") -> Question:
    return Question(prompt, choices, (row.choice(gold, len(choices)),))


# --- Ranked ---------------------------------------------------------------------------------------


def _foundry(end: str):
    """`query`, `choices` and `gold`; `end` comes between."""

    def ask(row: BenchmarkRow) -> Question:
        choices = tuple(" " + c for c in row.texts("choices"))
        return _choice(row, row.text("query").rstrip("\n") + end, choices)

    return ask


def _partial(row: BenchmarkRow) -> Question:
    """Winograd schemas: the choice is before, what is scored is the ending that all share."""
    contexts = row.texts("context_options")
    ending = (" " + row.text("continuation"),) * len(contexts)
    return Question("", ending, (row.choice("gold", len(contexts)),), contexts=contexts)


def _hellaswag(row: BenchmarkRow) -> Question:
    endings = tuple(" " + _wikihow(x) for x in row.texts("endings"))
    prompt = _wikihow(f"{row.text('activity_label')}: {row.text('ctx_a')} {row.text('ctx_b').capitalize()}")
    return _choice(row, prompt, endings, "label")


def _wikihow(text: str) -> str:
    """Without the marks that WikiHow's titles and steps left in."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r" +", " ", re.sub(r"\[.*?\]", "", text)).strip()


def _record(row: BenchmarkRow) -> list[Question]:
    """ReCoRD: the passage's entities, each in the place of the query's blank; what follows it is scored, too."""
    passage = row.text("passage.text").replace("\n@highlight\n", "\n- ")
    entities = sorted({row.text("passage.text")[e["start"] : e["end"] + 1] for e in row.fields["passage"]["entities"]})
    asked = []
    for qa in row.rows("qas"):
        before, _, after = qa.text("query").partition("@placeholder")
        right = {a.text("text") for a in qa.rows("answers")}
        gold = tuple(i for i, e in enumerate(entities) if e in right)
        asked.append(Question(f"{passage}\n- {before}".rstrip(), tuple(f" {e}{after}" for e in entities), gold))
    return asked


def _rte(row: BenchmarkRow) -> Question:
    gold = row.one_of("label", ("entailment", "not_entailment"))
    prompt = f"{row.text('premise')}\nquestion: {row.text('hypothesis')} True or False?\nanswer:"
    return Question(prompt, (" True", " False"), (gold,))


def _cb(row: BenchmarkRow) -> Question:
    gold = row.one_of("label", ("entailment", "contradiction", "neutral"))
    return _three_way(row.text("premise"), row.text("hypothesis"), gold)


def _anli(row: BenchmarkRow) -> Question:
    return _three_way(row.text("context"), row.text("hypothesis"), row.one_of("label", ("e", "c", "n")))


def _three_way(premise: str, hypothesis: str, gold: int) -> Question:
    prompt = f"{premise}\nquestion: {hypothesis} true, false, or neither?\nanswer:"
    return Question(prompt, (" true", " false", " neither"), (gold,))


def _wic(row: BenchmarkRow) -> Question:
    question = f"Is the word '{row.text('word')}' used in the same way in the two sentences above?"
    prompt = f"{row.text('sentence1')}\n{row.text('sentence2')}\nquestion: {question}\nanswer:"
    return Question(prompt, _NO_YES, (int(row.flag("label")),))


def _wsc(row: BenchmarkRow) -> Question:
    pronoun, noun = row.text("target.span2_text"), row.text("target.span1_text")
    question = f'In the passage above, does the pronoun "{pronoun}" refer to {noun}?'
    return Question(f"Passage: {row.text('text')}\nQuestion: {question}\nAnswer:", _NO_YES, (int(row.flag("label")),))


def _multirc(row: BenchmarkRow) -> list[Question]:
    """MultiRC: of every answer, whether it is right."""
    passage = BenchmarkRow(row.get("passage", dict, "an object"), row.where)
    head = f"READING COMPREHENSION ANSWER KEY\n\n{passage.text('text')}"
    return [
        Question(
            f"{head}\n\n{question.text('question')}\n-",
            tuple(f" [{verdict}] {answer.text('text')}" for verdict in ("False", "True")),
            (int(answer.number("label")),),
        )
        for question in passage.rows("questions")
        for answer in question.rows("answers")
    ]


def _copa(row: BenchmarkRow) -> Question:
    """SuperGLUE's own columns."""
    link = ("therefore", "because")[row.one_of("question", ("effect", "cause"))]
    choices = tuple(f" {c[:1].lower()}{c[1:]}" for c in (row.text("choice1"), row.text("choice2")))
    return _choice(row, f"{row.text('premise').rstrip('.')} {link}", choices, "label")


def _story(row: BenchmarkRow) -> Question:
    story = " ".join(row.text(f"InputSentence{i}") for i in (1, 2, 3, 4))
    endings = tuple(" " + row.text(f"RandomFifthSentenceQuiz{i}") for i in (1, 2))
    return Question(story, endings, (int(row.number("AnswerRightEnding")) - 1,))


def _race(row: BenchmarkRow) -> Question:
    choices = tuple(" " + x for x in row.texts("options"))
    gold = row.one_of("answer", "ABCD"[: len(choices)])
    article, question = row.text("article"), row.text("question")
    return Question(f"Article:\n{article}\n\nQuestion: {question}\nAnswer:", choices, (gold,))


def _superglue(name: str, ask) -> Source:
    return Source(f"superglue/{name}/val.jsonl", ask)


def _of_foundry(name: str, end: str) -> Source:
    return Source(f"nlp/{name}.jsonl", _foundry(end))


RANKED: tuple[Task, ...] = (
    Ranked("boolq", (_of_foundry("boolq", "\nAnswer:"),), n_official=3270),
    Ranked("record", (_superglue("ReCoRD", _record),), n_official=10_000),
    Ranked("copa", (_superglue("COPA", _copa), _of_foundry("copa", "")), n_official=100),
    Ranked("rte", (_superglue("RTE", _rte),), n_official=277),
    Ranked("wic", (_superglue("WiC", _wic),), n_official=638),
    Ranked("wsc", (_superglue("WSC", _wsc),), n_official=104),
    Ranked("cb", (_superglue("CB", _cb),), n_official=56),
    Ranked("multirc", (_superglue("MultiRC", _multirc),), f1=True, n_official=4848),
    Ranked("winograd", (Source("nlp/winograd_wsc.jsonl", _partial),), n_official=273),
    Ranked("winogrande", (Source("nlp/winogrande.jsonl", _partial),), n_official=1267),
    Ranked("anli_r1", (Source("anli/R1/dev.jsonl", _anli),), n_official=1000),
    Ranked("anli_r2", (Source("anli/R2/dev.jsonl", _anli),), n_official=1000),
    Ranked("anli_r3", (Source("anli/R3/dev.jsonl", _anli),), n_official=1200),
    Ranked("piqa", (_of_foundry("piqa", "\nAnswer:"),), n_official=1838),
    Ranked("storycloze", (Source("storycloze/val_2016.jsonl", _story),), n_official=1871),
    Ranked("hellaswag", (Source("nlp/hellaswag.jsonl", _hellaswag),), n_official=10_042),
    Ranked("arc_easy", (_of_foundry("arc_easy", "\nAnswer:"),), unconditional="Answer:", n_official=2376),
    Ranked("arc_challenge", (_of_foundry("arc_challenge", "\nAnswer:"),), unconditional="Answer:", n_official=1172),
    Ranked("race_m", (Source("race/middle.jsonl", _race),), unconditional="Answer:", n_official=1436),
    Ranked("race_h", (Source("race/high.jsonl", _race),), unconditional="Answer:", n_official=3498),
    Ranked("openbookqa", (_of_foundry("openbook_qa", ""),), unconditional="Answer:", n_official=500),
)


# --- Generated ------------------------------------------------------------------------------------


def _trivia(row: BenchmarkRow) -> Question:
    answer = row.text("answer")
    return Question(row.text("context"), answers=(answer, *row.texts("aliases")), solution=" " + answer)


def _open_question(answers: str):
    def ask(row: BenchmarkRow) -> Question:
        found = row.texts(answers)
        return Question(f"Q: {row.text('question').rstrip('?')}?\nA:", answers=found, solution=" " + found[0])

    return ask


def _squad(row: BenchmarkRow) -> Question:
    """Columns of Hugging Face's squad_v2; no answer at all means that the passage has none."""
    found = row.get("answers.text", list, "a list of strings") or ["unanswerable"]
    prompt = f"Title: {row.text('title')}\n\nBackground: {row.text('context')}\n\nQ: {row.text('question')}\n\nA:"
    return Question(prompt, answers=tuple(found), solution=" " + found[0])


def _last_word(row: BenchmarkRow) -> Question:
    """LAMBADA as a blank to fill, which tells the model that one word is wanted."""
    word = row.text("continuation")
    return Question(f"{row.text('context')} ____. ->", answers=(word,), solution=" " + word)


def _first_word(text: str) -> str:
    return next(iter(text.split()), "")


_EM_F1 = {"em": text_metrics.exact_words, "f1": text_metrics.f1}


GENERATED: tuple[Task, ...] = (
    Generated("triviaqa", (Source("nlp/triviaqa.jsonl", _trivia, shots=1),), metrics=_EM_F1, n_official=11_313),
    Generated("natural_questions", (Source("nlp/nq_open.jsonl", _open_question("answer"), shots=1),), n_official=3610),
    Generated("webquestions", (Source("nlp/webquestions.jsonl", _open_question("answers"), shots=1),), n_official=2032),
    Generated("squad_v2", (Source("nlp/squad_v2.jsonl", _squad, shots=1),), metrics=_EM_F1, n_official=11_873),
    Generated(
        "lambada",
        (Source("nlp/lambada_openai.jsonl", _last_word, shots=1),),
        max_new_tokens=12,
        extract=_first_word,
        n_official=5153,
    ),
)


TASKS = RANKED + GENERATED
