"""`evaluate`: a task, question by question, into a file of records; and what the records say.

A record holds all that scores are made of, so that an interrupted evaluation goes on where it was, and every
normalisation comes from one pass.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from upalm.evals.bootstrap import Estimate, f1, mean
from upalm.evals.scorer import Prompt
from upalm.evals.task import Generated, Loaded, Metric, Question, Ranked, Task, TooShort
from upalm.inference.scoring import Likelihood

Done = Callable[[int], None]
"""Told how many questions are done."""


@runtime_checkable
class Answers(Protocol):
    """What is asked: `answerer.Scorer`, or a stand-in."""

    fingerprint: dict[str, Any]

    def prompt(self, preamble: str, shots: Sequence[str], question: str, n_new: int) -> Prompt: ...

    def n_new(self, answer: str | int) -> int: ...

    def rank(
        self, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[Likelihood]]]: ...

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, stop: Sequence[str]
    ) -> Iterator[tuple[int, str]]: ...


class Result(NamedTuple):
    """Of a task."""

    estimates: dict[str, Estimate]
    """By metric; the first is the headline."""
    chance: float
    """Of the headline, for who guesses."""
    n_shots: int
    n_dropped: int
    """Questions that were asked with fewer exemplars, to fit."""
    n_cut: int
    """Questions that were cut at the front, exemplars all gone, to fit."""
    sha256: str
    """Of everything that was asked."""

    @property
    def score(self) -> Estimate:
        """The headline."""
        return next(iter(self.estimates.values()))


class _Request(NamedTuple):
    """The questions of a task as prompts."""

    prompts: list[list[Prompt]]
    """Of each question: one, or one a choice; then the unconditional one, if there is."""
    sha256: str


def evaluate(answers: Answers, task: Task, loaded: Loaded, records: Path, *, done: Done | None = None) -> Result:
    """Ask the questions of a task that `records` does not hold yet, and score them all.

    Args:
        answers: the model.
        task: what they are asked for.
        loaded: its questions and exemplars.
        records: JSON lines, one a question, written as answers come.
        done: progress.

    Raises:
        ValueError: a choice without tokens, or records of another evaluation.
        TooShort: an answer fits no row of the model, or no exemplar of any question does.
    """
    asked = _prompts(answers, task, loaded)
    journal = _Journal(records, {**answers.fingerprint, "task": task.name, "asked": asked.sha256})
    try:
        left = [i for i in range(len(loaded.questions)) if i not in journal.found]
        answer = _rank if isinstance(task, Ranked) else _generate
        for i, record in answer(answers, task, loaded.questions, asked.prompts, left):
            journal.write(i, {"prompt": _sha(asked.prompts[i][0].ids), **record})
            if done is not None:
                done(len(journal.found))
    finally:
        journal.close()
    found = [journal.found[i] for i in range(len(loaded.questions))]
    estimates, chance = _scored(task, loaded.questions, found)
    lost = [prompts[0] for prompts in asked.prompts]
    n_dropped, n_cut = sum(p.n_dropped > 0 for p in lost), sum(p.n_cut > 0 for p in lost)
    return Result(estimates, chance, len(loaded.shots), n_dropped, n_cut, asked.sha256)


# --- Asking ---------------------------------------------------------------------------------------


def _prompts(answers: Answers, task: Task, loaded: Loaded) -> _Request:
    shots = [shot + task.between for shot in loaded.shots]
    prompts, digest = [], hashlib.sha256()
    for question in loaded.questions:
        several = question.contexts or (question.prompt,)
        n_new = max(answers.n_new(c) for c in question.choices) if question.choices else 0
        if isinstance(task, Generated):
            n_new = answers.n_new(task.max_new_tokens)
        try:
            found = [answers.prompt(task.preamble, shots, text, n_new) for text in several]
            if isinstance(task, Ranked) and task.unconditional:
                found.append(answers.prompt("", (), task.unconditional, n_new))
        except TooShort as e:
            raise TooShort(f"{question.where}: {e}") from e
        prompts.append(found)
        digest.update(repr(([p.ids for p in found], question.choices)).encode())
    if loaded.shots and all(found[0].n_dropped == len(loaded.shots) for found in prompts):
        raise TooShort(
            f"{task.name}: none of its {len(loaded.shots)} exemplars fits beside any question; the model's rows are "
            "too short for it."
        )
    if isinstance(task, Generated):
        digest.update(repr((task.max_new_tokens, task.stop)).encode())
    return _Request(prompts, digest.hexdigest())


def _rank(
    answers: Answers, task: Task, questions: list[Question], prompts: list[list[Prompt]], left: list[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Log-probabilities and token counts of the choices; and of the choices after the unconditional text."""

    def choices_after(question: Question, j: int) -> tuple[str, ...]:
        """The j-th prompt of a question is one choice's own, or all choices'."""
        return question.choices[j : j + 1] if j < len(question.contexts) else question.choices

    units = [(i, prompt, choices_after(questions[i], j)) for i in left for j, prompt in enumerate(prompts[i])]
    for i, _, choices in units:
        for choice in choices:
            if answers.n_new(choice) == answers.n_new(0):
                raise ValueError(f"{questions[i].where}: the choice {choice!r} has no tokens.")
    first = {i: at for at, (i, _, _) in reversed(list(enumerate(units)))}
    got: dict[int, dict[int, list[Likelihood]]] = {i: {} for i in left}
    for at, likelihoods in answers.rank([p for _, p, _ in units], [c for _, _, c in units]):
        i = units[at][0]
        got[i][at - first[i]] = likelihoods
        if len(got[i]) == len(prompts[i]):
            parts = [got[i][j] for j in range(len(prompts[i]))]
            n = len(questions[i].contexts) or 1
            chosen = [x for part in parts[:n] for x in part]
            record = {
                "log_probs": [x.log_prob for x in chosen],
                "n_tokens": [x.n_tokens for x in chosen],
                "is_greedy": [x.is_greedy for x in chosen],
            }
            if len(parts) > n:
                record["unconditional"] = [x.log_prob for x in parts[n]]
            yield i, record | {"gold": list(questions[i].gold)}


def _generate(
    answers: Answers, task: Task, questions: list[Question], prompts: list[list[Prompt]], left: list[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The text that was generated, and the answer in it."""
    assert isinstance(task, Generated)
    for at, text in answers.generate([prompts[i][0] for i in left], task.max_new_tokens, task.stop):
        i = left[at]
        yield i, {"text": text, "prediction": task.extract(text), "answers": list(questions[i].answers)}


# --- Scoring --------------------------------------------------------------------------------------


def _scored(task: Task, questions: list[Question], records: list[dict[str, Any]]) -> tuple[dict[str, Estimate], float]:
    if isinstance(task, Generated):
        estimates = {
            name: mean(np.array([_best(like, r["prediction"], r["answers"]) for r in records]))
            for name, like in task.metrics.items()
        }
        return estimates, 0.0
    by_norm = {name: [] for name in NORMALISATIONS}
    for question, record in zip(questions, records, strict=True):
        for name, normalise in NORMALISATIONS.items():
            if name != "unconditional" or task.unconditional:
                by_norm[name].append(int(np.argmax(normalise(record, question.choices))))
    gold = [question.gold for question in questions]
    if task.f1:
        positive = [1 in g for g in gold]
        said = {name: np.array(chosen) == 1 for name, chosen in by_norm.items() if chosen}
        estimates = {f"f1_{name}": f1(yes, np.array(positive)) for name, yes in said.items()}
        rate = float(np.mean(positive))
        return estimates, rate / (rate + 0.5)  # of guessing either way
    estimates = {
        f"acc_{name}": mean(np.array([c in g for c, g in zip(chosen, gold, strict=True)], float))
        for name, chosen in by_norm.items()
        if chosen
    }
    return estimates, float(np.mean([len(q.gold) / len(q.choices) for q in questions]))


def _best(like: Metric, prediction: str, answers: Sequence[str]) -> float:
    """Over the answers; silence is never right, though some answers are nothing but what normalisation removes."""
    return max(float(like(prediction, answer)) for answer in answers) if prediction.strip() else 0.0


def _lengths(choices: Sequence[str], length: Callable[[str], int]) -> np.ndarray:
    return np.array([max(1, length(choice.strip())) for choice in choices])


NORMALISATIONS: dict[str, Callable[[dict[str, Any], Sequence[str]], np.ndarray]] = {
    "sum": lambda record, _: np.array(record["log_probs"]),
    "per_token": lambda record, _: np.array(record["log_probs"]) / np.array(record["n_tokens"]),
    "per_char": lambda record, choices: np.array(record["log_probs"]) / _lengths(choices, len),
    "per_byte": lambda record, choices: np.array(record["log_probs"]) / _lengths(choices, lambda c: len(c.encode())),
    "unconditional": lambda record, _: np.array(record["log_probs"]) - np.array(record["unconditional"]),
}
"""Scores of the choices from a record. `sum` is the headline (T5's, and what the paper most likely has); `per_token`
is GPT-3's, `per_char` and `per_byte` are the acc_norm and acc_bytes of lm-evaluation-harness, which do not count the
space before a choice."""


# --- Records --------------------------------------------------------------------------------------


def _sha(ids: Sequence[int]) -> str:
    return hashlib.sha256(np.array(ids, np.int64).tobytes()).hexdigest()[:16]


class _Journal:
    """Records on disk: first whose they are, then one a line as they come."""

    def __init__(self, path: Path, fingerprint: dict[str, Any]):
        self.found: dict[int, dict[str, Any]] = {}
        lines = []
        if path.is_file():
            lines = [line for line in path.read_bytes().split(b"\n")[:-1] if line]  # what has no end was cut off
        if lines:
            there = json.loads(lines[0])
            if there != fingerprint:
                named = sorted(k for k in there.keys() | fingerprint.keys() if there.get(k) != fingerprint.get(k))
                raise ValueError(
                    f"{path} holds records of another evaluation ({', '.join(named)} differ): choose another --out, "
                    "or delete it."
                )
            for line in lines[1:]:
                record = json.loads(line)
                self.found[record.pop("i")] = record
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(line + b"\n" for line in lines or [json.dumps(fingerprint).encode()]))
        self._file = path.open("a", encoding="utf-8")

    def write(self, i: int, record: dict[str, Any]) -> None:
        self.found[i] = record
        self._file.write(json.dumps({"i": i, **record}, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
