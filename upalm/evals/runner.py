"""Evaluate one task question by question, recording every answer.

A record holds everything that scores are computed from, so that an interrupted evaluation resumes, and every
normalisation comes from one pass.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from upalm.evals.bootstrap import Estimate, f1, mean
from upalm.evals.scorer import Prompt, Scorer
from upalm.evals.task import Generated, LoadedTask, Question, Ranked, RowsTooShort, Task
from upalm.evals.text_metrics import Metric
from upalm.files import parse_json, write_atomically
from upalm.inference.scoring import Likelihood

Progress = Callable[[int], None]
"""Receives the number of answered questions."""


class Result(NamedTuple):
    """Scores of one task."""

    estimates: dict[str, Estimate]
    """Estimates by metric; the first is the headline."""
    chance: float
    """Expected headline of random guesses."""
    n_shots: int
    n_dropped: int
    """Questions with fewer exemplars than `n_shots`, to fit the model's rows."""
    n_cut: int
    """Questions without exemplars and cut at the front, to fit."""
    sha256: str
    """Hash of all prompts and choices."""

    @property
    def score(self) -> Estimate:
        """The headline."""
        return next(iter(self.estimates.values()))


def evaluate(
    scorer: Scorer, task: Task, loaded: LoadedTask, records: Path, *, progress: Progress | None = None
) -> Result:
    """Answer the questions of a task that `records` does not hold yet, and score all of them.

    Args:
        scorer: the model.
        task: the format of the questions, and the metrics.
        loaded: questions and exemplars.
        records: JSON lines, one per question, written as answers come.
        progress: receives the number of answered questions.

    Raises:
        ValueError: a choice without tokens, or records that are damaged or of another evaluation.
        RowsTooShort: an answer fits no row of the model, or no exemplar of any question does.
    """
    prompts, sha256 = _build_prompts(scorer, task, loaded)
    identity = scorer.fingerprint | {"task": task.name, "asked": sha256}
    with _Journal(records, identity, lambda i, record: _is_complete(task, loaded.questions, i, record)) as journal:
        remaining = [i for i in range(len(loaded.questions)) if i not in journal.records]
        answer = _rank if isinstance(task, Ranked) else _generate
        for i, record in answer(scorer, task, loaded.questions, prompts, remaining):
            journal.write(i, {"prompt": _hash_ids(prompts[i][0].ids), **record})
            if progress is not None:
                progress(len(journal.records))
    answered = [journal.records[i] for i in range(len(loaded.questions))]
    estimates, chance = score_records(task, loaded.questions, answered)
    n_dropped, n_cut = sum(some[0].n_dropped > 0 for some in prompts), sum(some[0].n_cut > 0 for some in prompts)
    return Result(estimates, chance, len(loaded.shots), n_dropped, n_cut, sha256)


# --- Answers --------------------------------------------------------------------------------------


def _build_prompts(scorer: Scorer, task: Task, loaded: LoadedTask) -> tuple[list[list[Prompt]], str]:
    """Return each question's prompts, and the hash of all prompts and choices.

    A question has one prompt, or one per choice; then the unconditional prompt, if the task has one.
    """
    shots = [shot + task.separator for shot in loaded.shots]
    prompts, digest = [], hashlib.sha256()
    for question in loaded.questions:
        n_new = max((scorer.count_new(choice) for choice in question.choices), default=0)
        if isinstance(task, Generated):
            n_new = scorer.count_new(task.max_new_tokens)
        try:
            contexts = question.contexts or (question.prompt,)
            some = [scorer.build_prompt(task.preamble, shots, text, n_new) for text in contexts]
            if isinstance(task, Ranked) and task.unconditional:
                some.append(scorer.build_prompt("", (), task.unconditional, n_new))
        except RowsTooShort as e:
            raise RowsTooShort(f"{question.location}: {e}") from e
        prompts.append(some)
        digest.update(repr(([p.ids for p in some], question.choices)).encode())
    if loaded.shots and all(some[0].n_dropped == len(loaded.shots) for some in prompts):
        raise RowsTooShort(
            f"{task.name}: none of its {len(loaded.shots)} exemplars fits beside any question; the model's rows are "
            "too short for it."
        )
    if isinstance(task, Generated):
        digest.update(repr((task.max_new_tokens, task.stop)).encode())
    return prompts, digest.hexdigest()


def _rank(
    scorer: Scorer, task: Task, questions: list[Question], prompts: list[list[Prompt]], indices: list[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Score the choices of questions, and once more after the unconditional prompt if the task has one."""

    def choices_after(question: Question, j: int) -> tuple[str, ...]:
        """Return the choices that prompt j precedes: its own one, or all."""
        return question.choices[j : j + 1] if j < len(question.contexts) else question.choices

    for q in (questions[i] for i in indices):
        if empty := [choice for choice in q.choices if scorer.count_new(choice) == scorer.count_new(0)]:
            raise ValueError(f"{q.location}: the choice {empty[0]!r} has no tokens.")
    units = [(i, j, prompt) for i in indices for j, prompt in enumerate(prompts[i])]
    choices = [choices_after(questions[i], j) for i, j, _ in units]
    by_question: dict[int, dict[int, list[Likelihood]]] = {i: {} for i in indices}
    for unit, likelihoods in scorer.rank([prompt for _, _, prompt in units], choices):
        i, j, _ = units[unit]
        by_question[i][j] = likelihoods
        if len(by_question[i]) == len(prompts[i]):
            parts = [by_question[i].pop(j) for j in range(len(prompts[i]))]
            yield i, _ranked_record(questions[i], parts)


def _ranked_record(question: Question, parts: list[list[Likelihood]]) -> dict[str, Any]:
    """Collect the log-probabilities (nats), token counts and greediness of a question's choices."""
    n_contexts = len(question.contexts) or 1
    likelihoods = [x for part in parts[:n_contexts] for x in part]
    record: dict[str, Any] = {
        "log_probs": [x.log_prob for x in likelihoods],
        "n_tokens": [x.n_tokens for x in likelihoods],
        "is_greedy": [x.is_greedy for x in likelihoods],
    }
    if len(parts) > n_contexts:
        record["unconditional"] = [x.log_prob for x in parts[n_contexts]]
    if not all(map(math.isfinite, record["log_probs"] + record.get("unconditional", []))):
        raise ValueError(f"{question.location}: log-probabilities are {record['log_probs']}: the weights are damaged.")
    return record | {"gold": list(question.gold)}


def _generate(
    scorer: Scorer, task: Task, questions: list[Question], prompts: list[list[Prompt]], indices: list[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Generate text for questions, and extract the answers."""
    assert isinstance(task, Generated)
    for unit, text in scorer.generate([prompts[i][0] for i in indices], task.max_new_tokens, task.stop):
        i = indices[unit]
        yield i, {"text": text, "prediction": task.extract(text), "answers": list(questions[i].answers)}


# --- Scores ---------------------------------------------------------------------------------------


def score_records(
    task: Task, questions: Sequence[Question], records: Sequence[dict[str, Any]]
) -> tuple[dict[str, Estimate], float]:
    """Compute each metric of a task, and chance for its headline, from the records of its questions."""
    if isinstance(task, Ranked):
        return _score_ranked(task, questions, records)
    predictions = [task.extract(record["text"]) for record in records]
    estimates = {
        name: mean(np.array([_best_match(metric, p, q.answers) for p, q in zip(predictions, questions, strict=True)]))
        for name, metric in task.metrics.items()
    }
    return estimates, 0.0


def _score_ranked(
    task: Ranked, questions: Sequence[Question], records: Sequence[dict[str, Any]]
) -> tuple[dict[str, Estimate], float]:
    picks = {
        name: np.array([np.argmax(normalise(r, q.choices)) for q, r in zip(questions, records, strict=True)])
        for name, normalise in NORMALISATIONS.items()
        if name != "unconditional" or task.unconditional
    }
    if task.f1:
        positive = np.array([1 in q.gold for q in questions])
        rate = float(positive.mean())
        return {f"f1_{name}": f1(pick == 1, positive) for name, pick in picks.items()}, rate / (rate + 0.5)
    estimates = {
        f"acc_{name}": mean(np.array([p in q.gold for p, q in zip(pick, questions, strict=True)], float))
        for name, pick in picks.items()
    }
    return estimates, float(np.mean([len(q.gold) / len(q.choices) for q in questions]))


def _best_match(metric: Metric, prediction: str, answers: Sequence[str]) -> float:
    """Return the best match with any answer. Silence is never right, though normalisation can empty an answer."""
    return max(float(metric(prediction, answer)) for answer in answers) if prediction.strip() else 0.0


def _lengths(choices: Sequence[str], length: Callable[[str], int]) -> np.ndarray:
    return np.array([max(1, length(choice.strip())) for choice in choices])


NORMALISATIONS: dict[str, Callable[[dict[str, Any], Sequence[str]], np.ndarray]] = {
    "sum": lambda record, _: np.array(record["log_probs"]),
    "per_token": lambda record, _: np.array(record["log_probs"]) / np.array(record["n_tokens"]),
    "per_char": lambda record, choices: np.array(record["log_probs"]) / _lengths(choices, len),
    "per_byte": lambda record, choices: np.array(record["log_probs"]) / _lengths(choices, lambda c: len(c.encode())),
    "unconditional": lambda record, _: np.array(record["log_probs"]) - np.array(record["unconditional"]),
}
"""Scores of the choices from a record. `sum` is the headline (T5's, and most likely the paper's); `per_token` is
GPT-3's; `per_char` and `per_byte` are acc_norm and acc_bytes of lm-evaluation-harness, which do not count the space
before a choice."""


# --- Records --------------------------------------------------------------------------------------


def _is_complete(task: Task, questions: Sequence[Question], i: Any, record: dict[str, Any]) -> bool:
    """Check that a record belongs to a question of the task and has all that its scores need."""
    if not isinstance(i, int) or not 0 <= i < len(questions):
        return False
    if isinstance(task, Generated):
        return isinstance(record.get("text"), str)
    names = ("log_probs", "n_tokens", "unconditional")[: 3 if task.unconditional else 2]
    columns = [record.get(name) for name in names]
    return all(
        isinstance(column, list)
        and len(column) == len(questions[i].choices)
        and all(isinstance(x, int | float) and math.isfinite(x) for x in column)
        for column in columns
    )


def _hash_ids(ids: Sequence[int]) -> str:
    return hashlib.sha256(np.array(ids, np.int64).tobytes()).hexdigest()[:16]


_DAMAGED = "it is damaged or of another version; delete the file to answer its questions again."


class _Journal:
    """Records on disk: a line with the identity of the evaluation, then one line per record as answers come.

    Raises:
        ValueError: the file is of another evaluation, or damaged (other than a last line that was cut off).
    """

    def __init__(self, path: Path, identity: dict[str, Any], is_complete: Callable[[Any, dict[str, Any]], bool]):
        self.records: dict[int, dict[str, Any]] = {}
        content = path.read_bytes() if path.is_file() else b""
        lines = [line for line in content.split(b"\n")[:-1] if line]  # a line without its end was cut off
        for number, line in enumerate(lines, 1):
            record = _parse_record(line)
            if number == 1 and record is not None:
                if names := sorted(k for k in record.keys() | identity.keys() if record.get(k) != identity.get(k)):
                    raise ValueError(
                        f"{path} holds records of another evaluation ({', '.join(names)} differ): choose another "
                        "--out, or delete it."
                    )
            elif record is None or not is_complete(record.get("i"), record):
                raise ValueError(f"{path}, line {number} is no record of this task: {_DAMAGED}")
            else:
                self.records[record.pop("i")] = record
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, b"".join(line + b"\n" for line in lines or [json.dumps(identity).encode()]))
        self._file = path.open("a", encoding="utf-8")

    def write(self, i: int, record: dict[str, Any]) -> None:
        self.records[i] = record
        self._file.write(json.dumps({"i": i, **record}) + "\n")
        self._file.flush()

    def __enter__(self) -> "_Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _parse_record(line: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
