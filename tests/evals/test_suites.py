"""Suites: every file of the benchmarks is read as meant, an oracle is perfect and a guess is chance."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from upalm.evals import paper_numbers, runner
from upalm.evals.benchmark_files import read
from upalm.evals.runner import evaluate
from upalm.evals.scorer import Prompt, PromptFormat, Scorer
from upalm.evals.suites import SUITES, Suite, SuiteResult, find, run_suite
from upalm.evals.task import Generated, Loaded, Question, Ranked, Source, TooShort
from upalm.evals.tasks import english, multilingual, synthetic
from upalm.evals.tasks.reasoning import final_answer
from upalm.inference import decoding
from upalm.inference.scoring import Likelihood, rank
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder

DATA = Path(os.environ.get("UPALM_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the benchmark files are not in {DATA}")
EVERY = [(suite.name, task) for suite in SUITES.values() for task in suite.tasks]
HERE = [(name, task) for name, task in EVERY if name == "synthetic" or task.source(DATA) is not None]


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=4, d_head=8, d_ff=64, seq_len=256)
    return Decoder(config, key=jax.random.key(0))


class StandIn:
    """Answers by rule; its prompts are numbers of texts."""

    fingerprint = {"stand-in": True}

    def __init__(self, loaded: Loaded):
        self.texts, self.right, self.solutions = [], set(), {}
        for q in loaded.questions:
            self.right |= {(q.contexts[g] if q.contexts else q.prompt, q.choices[g]) for g in q.gold}
            self.solutions[q.prompt] = q.solved()[len(q.prompt) :] if not q.contexts else ""

    def prompt(self, preamble, shots, question, n_new):
        self.texts.append(question)
        return Prompt((len(self.texts) - 1,))

    def n_new(self, answer):
        return 1 if answer else 0

    def rank(self, prompts, choices):
        for i in reversed(range(len(prompts))):
            text = self.texts[prompts[i].ids[0]]
            yield i, [Likelihood(self.score(text, c), 1, False) for c in choices[i]]

    def generate(self, prompts, max_new_tokens, stop):
        for i, prompt in enumerate(prompts):
            yield i, self.answer(self.texts[prompt.ids[0]])


class Oracle(StandIn):
    def score(self, text, choice):
        return 0.0 if (text, choice) in self.right else -9.0

    def answer(self, text):
        return self.solutions[text]


class Guess(StandIn):
    def __init__(self, loaded):
        super().__init__(loaded)
        self.rng = np.random.default_rng(0)

    def score(self, text, choice):
        return self.rng.random()

    def answer(self, text):
        return ""


BLEMISHED = {"lambada": 2, **{f"xquad_{language}": 1 for language in ("en", "ru", "th", "zh")}}
"""Questions that nobody can answer: two last words of LAMBADA are two words over a line's end, and XQuAD asks one
question twice of a passage and wants different answers."""


@needs_data
@pytest.mark.parametrize(("suite", "task"), HERE, ids=[f"{s}-{t.name}" for s, t in HERE])
def test_an_oracle_is_perfect_and_a_guess_is_chance_on_every_file(suite, task, tmp_path):
    if suite == "synthetic":
        synthetic.write(tmp_path)
    folder = tmp_path if suite == "synthetic" else DATA
    loaded = task.load(folder)
    perfect = evaluate(Oracle(loaded), task, loaded, tmp_path / "oracle.jsonl")
    n_wrong = perfect.score.n * (1 - perfect.score.mean)
    assert n_wrong == pytest.approx(BLEMISHED.get(task.name, 0)), perfect.estimates
    guessed = evaluate(Guess(loaded), task, loaded, tmp_path / "guess.jsonl")
    error = (guessed.chance * (1 - guessed.chance) / guessed.score.n) ** 0.5
    assert abs(guessed.score.mean - guessed.chance) <= 3 * error, guessed


@needs_data
def test_every_benchmark_file_belongs_to_a_task():
    known = {source.file for _, task in EVERY for source in task.sources}
    there = {str(p.relative_to(DATA)) for p in DATA.rglob("*.json*")}
    exemplars = {f for f in there if any(x in f for x in ("_dev.", "exemplars", "cot_8shot", "cot_train", "train_500"))}
    apart = {f for f in there if f.startswith(("humaneval_infilling/", "tydiqa/"))}  # test_evals; the fixtures below
    assert there - known - exemplars - apart == set()


@needs_data
def test_tydiqas_rows_are_questions_on_their_passage():
    loaded = Source("tydiqa/goldp_like.jsonl", multilingual._passage, shots=1).load(DATA)
    assert (len(loaded.questions), len(loaded.shots)) == (5, 1)
    assert all(q.answers[0] in q.prompt for q in loaded.questions)


# --- The formats that are not in the folder ---

SUPERGLUE = {
    "record": (
        {
            "passage": {
                "text": "Ann met Bob in Rome.\n@highlight\nThey talked",
                "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 15, "end": 18}],
            },
            "qas": [{"query": "Later @placeholder left Bob.", "answers": [{"text": "Ann"}]}],
        },
        ("Ann met Bob in Rome.\n- They talked\n- Later", (" Ann left Bob.", " Bob left Bob.", " Rome left Bob."), 0),
    ),
    "rte": (
        {"premise": "It rains.", "hypothesis": "It is wet.", "label": "not_entailment"},
        ("It rains.\nquestion: It is wet. True or False?\nanswer:", (" True", " False"), 1),
    ),
    "cb": (
        {"premise": "P", "hypothesis": "H", "label": "neutral"},
        ("P\nquestion: H true, false, or neither?\nanswer:", (" true", " false", " neither"), 2),
    ),
    "anli_r1": (
        {"context": "P", "hypothesis": "H", "label": "c"},
        ("P\nquestion: H true, false, or neither?\nanswer:", (" true", " false", " neither"), 1),
    ),
    "wic": (
        {"word": "bank", "sentence1": "A bank.", "sentence2": "B bank.", "label": True},
        (
            "A bank.\nB bank.\nquestion: Is the word 'bank' used in the same way in the two sentences above?\nanswer:",
            (" no", " yes"),
            1,
        ),
    ),
    "wsc": (
        {"text": "Ann saw her.", "target": {"span1_text": "Ann", "span2_text": "her"}, "label": False},
        (
            'Passage: Ann saw her.\nQuestion: In the passage above, does the pronoun "her" refer to Ann?\nAnswer:',
            (" no", " yes"),
            0,
        ),
    ),
    "multirc": (
        {"passage": {"text": "P", "questions": [{"question": "Q?", "answers": [{"text": "A", "label": 1}]}]}},
        ("READING COMPREHENSION ANSWER KEY\n\nP\n\nQ?\n-", (" [False] A", " [True] A"), 1),
    ),
    "copa": (
        {"premise": "It rained.", "question": "effect", "choice1": "I got wet.", "choice2": "I flew.", "label": 0},
        ("It rained therefore", (" i got wet.", " i flew."), 0),
    ),
    "storycloze": (
        {
            **{f"InputSentence{i}": f"S{i}." for i in (1, 2, 3, 4)},
            **{"RandomFifthSentenceQuiz1": "E1.", "RandomFifthSentenceQuiz2": "E2.", "AnswerRightEnding": 2},
        },
        ("S1. S2. S3. S4.", (" E1.", " E2."), 1),
    ),
    "race_h": (
        {"article": "A", "question": "Q", "options": ["w", "x", "y", "z"], "answer": "C"},
        ("Article:\nA\n\nQuestion: Q\nAnswer:", (" w", " x", " y", " z"), 2),
    ),
}


@pytest.mark.parametrize("name", SUPERGLUE)
def test_published_formats_become_gpt3s_prompts(name, tmp_path):
    fields, (prompt, choices, gold) = SUPERGLUE[name]
    [task] = [t for t in english.TASKS if t.name == name]
    path = tmp_path / task.sources[0].file
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(fields) + "\n")
    [question] = task.load(tmp_path).questions
    assert (question.prompt, question.choices, question.gold) == (prompt, choices, (gold,))


def test_squads_unanswerable_questions_have_that_answer(tmp_path):
    [task] = [t for t in english.TASKS if t.name == "squad_v2"]
    row = {"title": "T", "context": "C", "question": "Q?", "answers": {"text": []}}
    (tmp_path / "nlp").mkdir()
    (tmp_path / "nlp/squad_v2.jsonl").write_text((json.dumps(row) + "\n") * 2)
    loaded = task.load(tmp_path)
    assert loaded.questions[0].answers == ("unanswerable",)
    assert loaded.shots == ("Title: T\n\nBackground: C\n\nQ: Q?\n\nA: unanswerable",)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Two. So the answer is (Q).\nQ: next", "(Q)"),
        ("So the answer is 24", "24"),
        ("the answer is Monsters, Inc", "Monsters, Inc"),
        ("The answer is 3.5. Then", "3.5"),
        ("I do not know", ""),
    ],
)
def test_the_final_answer_is_whole(text, answer):
    """A `Q` in the answer ends nothing, and a missing full stop costs no character."""
    assert final_answer(text) == answer


# --- What is asked ---


def test_exemplars_go_whole_before_context_is_cut_and_the_mode_stays(model, tokenizer):
    answerer = Scorer(model, tokenizer, PromptFormat(mode="nlg", infill=True))
    symbols = tokenizer.symbols
    shots = [f"{letter} " * 60 for letter in "abc"]
    front, end = symbols.modes["nlg"], symbols.sentinels[:1]

    def text(prompt):
        assert prompt.ids[: len(front)] == front and prompt.ids[-1:] == end
        return tokenizer.decode(prompt.ids[len(front) : -1])

    prompt = answerer.prompt("p ", shots, "question", 10)
    assert (prompt.n_dropped, prompt.n_cut) == (2, 0)
    assert text(prompt) == "p " + shots[2] + "question"
    assert len(prompt.ids) + 1 + 10 <= 256
    long = answerer.prompt("p ", shots, "x " * 400, 10)
    assert long.n_dropped == 3 and long.n_cut > 0
    assert len(long.ids) == 256 - 1 - 10 and text(long).endswith("x x ")
    with pytest.raises(TooShort, match="answers of 300 tokens leave no room"):
        answerer.prompt("", (), "question", 300)


def test_no_exemplar_that_fits_is_no_few_shot_score(model, tokenizer, tmp_path):
    question = Question("q", (" a", " b"), (0,), where="here")
    loaded = Loaded([question], ("word " * 300,))
    with pytest.raises(TooShort, match="none of its 1 exemplars fits"):
        evaluate(Scorer(model, tokenizer), Ranked("t", ()), loaded, tmp_path / "r.jsonl")


# --- Scores ---


def scored(task, question, **record):
    return runner._scored(task, [question], [record])[0]


def test_five_normalisations_of_one_pass():
    question = Question("", (" ab", " äbcdefgh", " abcd"), (0,))
    record = {"log_probs": [-4.0, -8.0, -6.0], "n_tokens": [1, 4, 2], "unconditional": [-2.0, -5.0, -9.0]}
    values = {k: f(record, question.choices).tolist() for k, f in runner.NORMALISATIONS.items()}
    assert values == {
        "sum": [-4, -8, -6],
        "per_token": [-4, -2, -3],
        "per_char": [-2, -1, -1.5],
        "per_byte": [-2, pytest.approx(-8 / 9), -1.5],
        "unconditional": [-2, -3, 3],
    }
    found = scored(Ranked("t", (), unconditional="Answer:"), question, **record)
    assert {k: e.mean for k, e in found.items()} == {
        **{"acc_sum": 1, "acc_per_token": 0, "acc_per_char": 0, "acc_per_byte": 0, "acc_unconditional": 0}
    }
    assert "acc_unconditional" not in scored(Ranked("t", ()), question, **record)


def test_multircs_f1_is_over_all_answers():
    questions = [Question("", ("f", "t"), (gold,)) for gold in (1, 1, 0, 0)]
    records = [{"log_probs": [0.0, float(said)], "n_tokens": [1, 1]} for said in (1, -1, 1, -1)]
    found, _ = runner._scored(Ranked("t", (), f1=True), questions, records)
    assert found["f1_sum"].mean == pytest.approx(0.5)  # one true positive, one false, one missed


def test_the_papers_tables_are_as_it_says():
    """Averages and counts that the paper states, from the rows as they stand here."""
    table = np.array(list(paper_numbers.TABLE_8.values()))
    assert table.shape == (26, 6)
    assert np.allclose(table.mean(0), [65.1, 65.9, 68.6, 66.5, 68.3, 71.4], atol=0.06)
    assert (table[:, 5] > table[:, 2]).sum() == 21
    assert sorted(paper_numbers.TABLE_8) == sorted(t.name for t in SUITES["english26"].tasks)
    rows = np.array([paper_numbers.TASKS[t.name] for t in SUITES["bbes"].tasks])
    assert len(rows) == 21 and np.allclose(rows.mean(0), [64.16, 67.7], atol=0.06)
    assert (rows[:, 1] > rows[:, 0]).sum() == 19


def test_an_average_over_a_hole_is_no_number_of_the_suite(tmp_path):
    for name, gold in (("a", 0), ("b", 0), ("d", 1)):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"query": "q", "choices": ["x", "y"], "gold": {gold}}}\n' * 4)
    ask = english._foundry("")
    tasks = [Ranked(n, (Source(f"{n}.jsonl", ask),), group="g" if n in "ab" else "") for n in ("a", "b", "c", "d")]
    suite = Suite("s", "", tuple(tasks), normalised=True)
    knows_a = Oracle(tasks[0].load(tmp_path))
    found = run_suite(knows_a, suite, tmp_path, tmp_path / "out")
    average = found.average()
    assert [found.score(n)[0] for n in ("a", "b", "d")] == [1, 1, -1]  # 0 is chance
    assert (average.mean, average.n_tasks, average.is_whole) == (0, 3, False)  # a and b count as one
    assert found.not_run == {"c": "no c.jsonl"}
    chosen = run_suite(knows_a, suite.only(("b", "a", "b")), tmp_path, tmp_path / "chosen").average()
    assert (chosen.mean, chosen.n_tasks, chosen.is_whole) == (1, 2, False)  # nor is what is left when some are chosen
    whole = Suite("s", "", tuple(t for t in tasks if t.name != "c"))
    assert run_suite(knows_a, whole, tmp_path, tmp_path / "whole").average().is_whole
    assert SuiteResult(suite, {}, {}).average() is None


# --- Records ---


def rows(tmp_path, n=12):
    rng = np.random.default_rng(0)
    lines = [
        json.dumps({"query": "word " * int(rng.integers(1, 40)), "choices": ["a b", "c", "d e f"], "gold": i % 3})
        for i in range(n)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    return Ranked("t", (Source("t.jsonl", english._foundry(" =")),), unconditional="Answer:")


def test_an_interrupted_evaluation_goes_on_to_the_same_records(model, tokenizer, tmp_path, monkeypatch):
    task = rows(tmp_path)
    loaded, path = task.load(tmp_path), tmp_path / "records.jsonl"
    answerer = Scorer(model, tokenizer, tokens_a_batch=64)
    whole = evaluate(answerer, task, loaded, tmp_path / "whole.jsonl")

    class Stops(Scorer):
        def rank(self, prompts, choices):
            for n, found in enumerate(super().rank(prompts, choices)):
                if n == 9:
                    raise KeyboardInterrupt
                yield found

    with pytest.raises(KeyboardInterrupt):
        evaluate(Stops(model, tokenizer, tokens_a_batch=64), task, loaded, path)
    n_before = len(path.read_text().split("\n")) - 2
    assert 0 < n_before < 12
    path.write_bytes(path.read_bytes() + b'{"i": 3, "log_pr')  # the machine died while it wrote
    asked = []
    real = Scorer.rank
    monkeypatch.setattr(Scorer, "rank", lambda self, p, c: asked.append(len(p)) or real(self, p, c))
    assert evaluate(answerer, task, loaded, path) == whole
    assert asked == [2 * (12 - n_before)]
    assert evaluate(answerer, task, loaded, path) == whole and asked[-1] == 0
    lines = [sorted((p).read_text().split("\n")) for p in (path, tmp_path / "whole.jsonl")]
    assert len(lines[0]) == len(lines[1])


@pytest.mark.parametrize("change", ["weights", "form", "data"])
def test_records_of_another_evaluation_are_refused(change, model, tokenizer, tmp_path):
    task = rows(tmp_path)
    loaded, path = task.load(tmp_path), tmp_path / "records.jsonl"
    evaluate(Scorer(model, tokenizer), task, loaded, path)
    other = Scorer(model, tokenizer)
    if change == "weights":
        other = Scorer(jax.tree.map(lambda x: x * 1.0001, model), tokenizer)
    elif change == "form":
        other = Scorer(model, tokenizer, PromptFormat(attention="causal"))
    else:
        loaded.questions[3] = loaded.questions[3]._replace(prompt="another")
    with pytest.raises(ValueError, match=r"another evaluation \(.*(weights|attention|asked)"):
        evaluate(other, task, loaded, path)


def test_scores_do_not_depend_on_batches_or_order_and_are_the_brute_forces(model, tokenizer, tmp_path):
    task = rows(tmp_path)
    loaded = task.load(tmp_path)

    def log_probs(answerer, questions, name):
        evaluate(answerer, task, loaded._replace(questions=questions), tmp_path / name)
        found = [json.loads(line) for line in (tmp_path / name).read_text().split("\n")[1:] if line]
        return {questions[r["i"]]: r["log_probs"] + r["unconditional"] for r in found}

    big = log_probs(Scorer(model, tokenizer), loaded.questions, "a")
    small = log_probs(Scorer(model, tokenizer, tokens_a_batch=32), loaded.questions[::-1], "b")
    alone = Scorer(model, tokenizer)
    for question in loaded.questions:
        assert big[question] == pytest.approx(small[question], abs=1e-4)
        choices = [tokenizer.encode(c) for c in question.choices]
        both = (question.prompt, "Answer:")
        reference = [x.log_prob for p in both for _, y in rank(model, [tokenizer.encode(p)], [choices]) for x in y]
        assert big[question] == pytest.approx(reference, abs=1e-4)
    assert alone.fingerprint["weights"] == Scorer(model, tokenizer).fingerprint["weights"]


def test_generated_answers_are_those_of_one_at_a_time_and_compile_nothing_new(model, tokenizer, tmp_path):
    (tmp_path / "g.jsonl").write_text(
        "".join(json.dumps({"question": "word " * n, "answer": ["x"]}) + "\n" for n in (1, 4, 9, 20, 30, 2))
    )
    task = Generated("g", (Source("g.jsonl", english._open_question("answer"), shots=1),), max_new_tokens=6)
    loaded = task.load(tmp_path)
    programs = (decoding.prefill, decoding._first, decoding.advance)
    for form in (PromptFormat(), PromptFormat("causal", "s2s", infill=True)):
        texts = []
        for tokens in (4096, 32):
            path = tmp_path / f"{form.attention}{form.mode}{tokens}"
            evaluate(Scorer(model, tokenizer, form, tokens_a_batch=tokens), task, loaded, path)
            found = [json.loads(line) for line in path.read_text().split("\n")[1:] if line]
            texts.append({r["i"]: r["text"] for r in found})
        assert texts[0] == texts[1]
        n_compiled = [f._cache_size() for f in programs]
        evaluate(Scorer(model, tokenizer, form, tokens_a_batch=32), task, loaded, tmp_path / f"{form.mode}again")
        assert [f._cache_size() for f in programs] == n_compiled
        assert not any("<extra_id" in text or "\n" in text for text in texts[0].values())


# --- Bad input ---


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"choices": ["a"], "gold": 0}', r"line 1: field 'query' is missing, there is \['choices', 'gold'\]"),
        ('{"query": "q", "choices": ["a", "b"], "gold": 2}', r"'gold' is 2, there are 2 choices \(0 to 1\)"),
        ('{"query": "q", "choices": ["a", "b"], "gold": -1}', "'gold' is -1"),
        ('{"query": "q", "choices": ["a", "b"], "gold": true}', "'gold' is True, expected one of"),
        ('{"query": 3, "choices": ["a"], "gold": 0}', "'query' is 3, expected a string"),
        ('{"query": "q", "choices": [], "gold": 0}', "expected a list of strings"),
        ('{"query": "q"', "line 1: not JSON"),
        ("", "has no rows"),
    ],
)
def test_bad_rows_are_named(line, message, tmp_path):
    (tmp_path / "t.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        Source("t.jsonl", english._foundry("")).load(tmp_path)


def test_rows_end_at_line_feeds_alone(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": "x\u2028y\u0085z"}\n', encoding="utf-8")
    assert [r.text("a") for r in read(tmp_path / "t.jsonl")] == ["x\u2028y\u0085z"]


def test_a_choice_without_tokens_is_named(model, tokenizer, tmp_path):
    question = Question("q", ("", " b"), (0,), where="t.jsonl, line 1")
    for form in (PromptFormat(), PromptFormat(infill=True)):
        with pytest.raises(ValueError, match="t.jsonl, line 1: the choice '' has no tokens"):
            answerer, path = Scorer(model, tokenizer, form), tmp_path / f"{form.infill}.jsonl"
            evaluate(answerer, Ranked("t", ()), Loaded([question], ()), path)


def test_unknown_names_are_met_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="no suite 'english': did you mean 'english26'"):
        find("english")
    with pytest.raises(ValueError, match="no task 'bolq': did you mean 'boolq'"):
        find("english26").only(("bolq",))
    with pytest.raises(ValueError, match=r"has no file of suite mgsm; it looked for mgsm/es.jsonl"):
        run_suite(Oracle(Loaded([], ())), find("mgsm"), tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="2 questions, 5 of them are exemplars"):
        (tmp_path / "t.jsonl").write_text('{"query": "q", "choices": ["a", "b"], "gold": 1}\n' * 2)
        Source("t.jsonl", english._foundry(""), shots=5).load(tmp_path)
