"""The 26 English tasks of Table 8 (U-PaLM section 11.2): 21 zero-shot ranked, 5 one-shot generated.

Prompts follow GPT-3's (Brown et al. 2020, appendix G). Files: those of llm-foundry's local data, and the published
ones of SuperGLUE, ANLI, RACE, StoryCloze and SQuAD 2 as JSON lines; docs/evals.md has names and columns.
"""

import re
from functools import partial

from upalm.evals import text_metrics
from upalm.evals.benchmark_files import BenchmarkRow
from upalm.evals.task import BuildQuestion, Generated, Question, Ranked, Source, Task

_NO_YES = (" no", " yes")


def _build_choice(row: BenchmarkRow, prompt: str, choices: tuple[str, ...], gold: str = "gold") -> Question:
    return Question(prompt, choices, (row.choice(gold, len(choices)),))


# --- Ranked ---------------------------------------------------------------------------------------


def _from_foundry(end: str) -> BuildQuestion:
    """Make a builder for columns `query`, `choices` and `gold`; `end` separates query and answer."""

    def build(row: BenchmarkRow) -> Question:
        choices = tuple(" " + c for c in row.texts("choices"))
        return _build_choice(row, row.text("query").rstrip("\n") + end, choices)

    return build


def _build_winograd(row: BenchmarkRow) -> Question:
    """Build a Winograd schema: the choices precede the scored ending, which all share."""
    contexts = row.texts("context_options")
    ending = (" " + row.text("continuation"),) * len(contexts)
    return Question("", ending, (row.choice("gold", len(contexts)),), contexts=contexts)


def _build_hellaswag(row: BenchmarkRow) -> Question:
    endings = tuple(" " + _clean_wikihow(x) for x in row.texts("endings"))
    prompt = _clean_wikihow(f"{row.text('activity_label')}: {row.text('ctx_a')} {row.text('ctx_b').capitalize()}")
    return _build_choice(row, prompt, endings, "label")


def _clean_wikihow(text: str) -> str:
    """Remove the marks of WikiHow's titles and steps."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r" +", " ", re.sub(r"\[.*?\]", "", text)).strip()


def _build_record(row: BenchmarkRow) -> list[Question]:
    """Build ReCoRD's questions: each entity of the passage fills the query's blank, and is scored with what follows."""
    text = row.text("passage.text")
    places = [(e.choice("start", len(text)), e.choice("end", len(text))) for e in row.rows("passage.entities")]
    passage, entities = text.replace("\n@highlight\n", "\n- "), sorted({text[a : b + 1] for a, b in places})
    questions = []
    for qa in row.rows("qas"):
        before, _, after = qa.text("query").partition("@placeholder")
        right = {a.text("text") for a in qa.rows("answers")}
        gold = tuple(i for i, e in enumerate(entities) if e in right)
        questions.append(Question(f"{passage}\n- {before}".rstrip(), tuple(f" {e}{after}" for e in entities), gold))
    return questions


def _build_rte(row: BenchmarkRow) -> Question:
    gold = row.one_of("label", ("entailment", "not_entailment"))
    prompt = f"{row.text('premise')}\nquestion: {row.text('hypothesis')} True or False?\nanswer:"
    return Question(prompt, (" True", " False"), (gold,))


def _build_three_way(premise: str, labels: tuple[str, ...], row: BenchmarkRow) -> Question:
    prompt = f"{row.text(premise)}\nquestion: {row.text('hypothesis')} true, false, or neither?\nanswer:"
    return Question(prompt, (" true", " false", " neither"), (row.one_of("label", labels),))


_build_cb = partial(_build_three_way, "premise", ("entailment", "contradiction", "neutral"))
_build_anli = partial(_build_three_way, "context", ("e", "c", "n"))


def _build_wic(row: BenchmarkRow) -> Question:
    question = f"Is the word '{row.text('word')}' used in the same way in the two sentences above?"
    prompt = f"{row.text('sentence1')}\n{row.text('sentence2')}\nquestion: {question}\nanswer:"
    return Question(prompt, _NO_YES, (int(row.flag("label")),))


def _build_wsc(row: BenchmarkRow) -> Question:
    pronoun, noun = row.text("target.span2_text"), row.text("target.span1_text")
    question = f'In the passage above, does the pronoun "{pronoun}" refer to {noun}?'
    return Question(f"Passage: {row.text('text')}\nQuestion: {question}\nAnswer:", _NO_YES, (int(row.flag("label")),))


def _build_multirc(row: BenchmarkRow) -> list[Question]:
    """Build MultiRC's questions: is this answer right?"""
    passage = BenchmarkRow(row.get("passage", dict, "an object"), row.location)
    head = f"READING COMPREHENSION ANSWER KEY\n\n{passage.text('text')}"
    return [
        Question(
            f"{head}\n\n{question.text('question')}\n-",
            tuple(f" [{verdict}] {answer.text('text')}" for verdict in ("False", "True")),
            (answer.choice("label", 2),),
        )
        for question in passage.rows("questions")
        for answer in question.rows("answers")
    ]


def _build_copa(row: BenchmarkRow) -> Question:
    """Build a question from SuperGLUE's columns."""
    link = ("therefore", "because")[row.one_of("question", ("effect", "cause"))]
    choices = tuple(f" {c[:1].lower()}{c[1:]}" for c in (row.text("choice1"), row.text("choice2")))
    return _build_choice(row, f"{row.text('premise').rstrip('.')} {link}", choices, "label")


def _build_story(row: BenchmarkRow) -> Question:
    story = " ".join(row.text(f"InputSentence{i}") for i in (1, 2, 3, 4))
    endings = tuple(" " + row.text(f"RandomFifthSentenceQuiz{i}") for i in (1, 2))
    return Question(story, endings, (row.choice("AnswerRightEnding", 3) - 1,))


def _build_race(row: BenchmarkRow) -> Question:
    choices = tuple(" " + x for x in row.texts("options"))
    gold = row.one_of("answer", "ABCD"[: len(choices)])
    article, question = row.text("article"), row.text("question")
    return Question(f"Article:\n{article}\n\nQuestion: {question}\nAnswer:", choices, (gold,))


def _superglue_source(name: str, build: BuildQuestion) -> Source:
    return Source(f"superglue/{name}/val.jsonl", build)


def _foundry_source(name: str, end: str) -> Source:
    return Source(f"nlp/{name}.jsonl", _from_foundry(end))


RANKED: tuple[Task, ...] = (
    Ranked("boolq", (_foundry_source("boolq", "\nAnswer:"),), n_official=3270),
    Ranked("record", (_superglue_source("ReCoRD", _build_record),), n_official=10_000),
    Ranked("copa", (_superglue_source("COPA", _build_copa), _foundry_source("copa", "")), n_official=100),
    Ranked("rte", (_superglue_source("RTE", _build_rte),), n_official=277),
    Ranked("wic", (_superglue_source("WiC", _build_wic),), n_official=638),
    Ranked("wsc", (_superglue_source("WSC", _build_wsc),), n_official=104),
    Ranked("cb", (_superglue_source("CB", _build_cb),), n_official=56),
    Ranked("multirc", (_superglue_source("MultiRC", _build_multirc),), f1=True, n_official=4848),
    Ranked("winograd", (Source("nlp/winograd_wsc.jsonl", _build_winograd),), n_official=273),
    Ranked("winogrande", (Source("nlp/winogrande.jsonl", _build_winograd),), n_official=1267),
    Ranked("anli_r1", (Source("anli/R1/dev.jsonl", _build_anli),), n_official=1000),
    Ranked("anli_r2", (Source("anli/R2/dev.jsonl", _build_anli),), n_official=1000),
    Ranked("anli_r3", (Source("anli/R3/dev.jsonl", _build_anli),), n_official=1200),
    Ranked("piqa", (_foundry_source("piqa", "\nAnswer:"),), n_official=1838),
    Ranked("storycloze", (Source("storycloze/val_2016.jsonl", _build_story),), n_official=1871),
    Ranked("hellaswag", (Source("nlp/hellaswag.jsonl", _build_hellaswag),), n_official=10_042),
    Ranked("arc_easy", (_foundry_source("arc_easy", "\nAnswer:"),), unconditional="Answer:", n_official=2376),
    Ranked("arc_challenge", (_foundry_source("arc_challenge", "\nAnswer:"),), unconditional="Answer:", n_official=1172),
    Ranked("race_m", (Source("race/middle.jsonl", _build_race),), unconditional="Answer:", n_official=1436),
    Ranked("race_h", (Source("race/high.jsonl", _build_race),), unconditional="Answer:", n_official=3498),
    Ranked("openbookqa", (_foundry_source("openbook_qa", ""),), unconditional="Answer:", n_official=500),
)


# --- Generated ------------------------------------------------------------------------------------


def _build_trivia(row: BenchmarkRow) -> Question:
    answer = row.text("answer")
    return Question(row.text("context"), answers=(answer, *row.texts("aliases")), solution=" " + answer)


def _from_open_question(answers: str) -> BuildQuestion:
    """Make a builder for columns `question` and `answers`."""

    def build(row: BenchmarkRow) -> Question:
        right = row.texts(answers)
        return Question(f"Q: {row.text('question').rstrip('?')}?\nA:", answers=right, solution=" " + right[0])

    return build


def _build_squad(row: BenchmarkRow) -> Question:
    """Build a question from Hugging Face's squad_v2 columns; without an answer it is "unanswerable"."""
    answers = row.texts("answers.text") if row.get("answers.text", list, "a list of strings") else ("unanswerable",)
    prompt = f"Title: {row.text('title')}\n\nBackground: {row.text('context')}\n\nQ: {row.text('question')}\n\nA:"
    return Question(prompt, answers=answers, solution=" " + answers[0])


def _build_lambada(row: BenchmarkRow) -> Question:
    """Build LAMBADA's question as a blank, which tells the model to answer with one word."""
    word = row.text("continuation")
    return Question(f"{row.text('context')} ____. ->", answers=(word,), solution=" " + word)


def _first_word(text: str) -> str:
    return next(iter(text.split()), "")


_NATURAL = Source("nlp/nq_open.jsonl", _from_open_question("answer"), shots=1)
_WEB = Source("nlp/webquestions.jsonl", _from_open_question("answers"), shots=1)
_SQUAD = {"em": text_metrics.squad_exact, "f1": text_metrics.squad_f1}
_TRIVIA = {"em": text_metrics.trivia_exact, "f1": text_metrics.trivia_f1}


GENERATED: tuple[Task, ...] = (
    Generated("triviaqa", (Source("nlp/triviaqa.jsonl", _build_trivia, shots=1),), metrics=_TRIVIA, n_official=11_313),
    Generated("natural_questions", (_NATURAL,), n_official=3610),
    Generated("webquestions", (_WEB,), n_official=2032),
    Generated("squad_v2", (Source("nlp/squad_v2.jsonl", _build_squad, shots=1),), metrics=_SQUAD, n_official=11_873),
    Generated(
        "lambada",
        (Source("nlp/lambada_openai.jsonl", _build_lambada, shots=1),),
        max_new_tokens=12,
        extract=_first_word,
        metrics={"em": text_metrics.match_words},
        n_official=5153,
    ),
)


TASKS = RANKED + GENERATED
