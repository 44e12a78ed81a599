"""The paper's suites (U-PaLM section 4), by name."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from upalm.evals import paper_numbers
from upalm.evals.runner import Answers, Result, evaluate
from upalm.evals.task import Task, TooShort
from upalm.evals.tasks import bigbench, english, extras, mmlu, multilingual, reasoning, synthetic
from upalm.files import write_atomically
from upalm.spelling import suggest


@dataclass(frozen=True)
class Suite:
    """Tasks that the paper averages."""

    name: str
    what: str
    tasks: tuple[Task, ...]
    normalised: bool = False
    """Average scores of which 0 is chance and 100 is perfect (PaLM Appendix H)."""
    n_left_out: int = 0
    """Tasks that belong to it and are not among `tasks`."""

    def __post_init__(self):
        names = [task.name for task in self.tasks]
        assert len(set(names)) == len(names)

    def only(self, names: tuple[str, ...]) -> "Suite":
        """With some of its tasks.

        Raises:
            ValueError: one that it has not, with the nearest.
        """
        known = {task.name: task for task in self.tasks}
        for name in names:
            if name not in known:
                raise ValueError(f"suite {self.name} has no task {name!r}: {suggest(name, known)}")
        chosen = tuple(known[name] for name in dict.fromkeys(names)) or self.tasks
        return replace(self, tasks=chosen, n_left_out=self.n_tasks - len(chosen))

    @property
    def n_tasks(self) -> int:
        """All that belong to it."""
        return len(self.tasks) + self.n_left_out

    def missing(self, folder: Path) -> dict[str, str]:
        """The tasks whose files are not in the folder, each with what it looked for."""
        return {
            task.name: " or ".join(source.file for source in task.sources)
            for task in self.tasks
            if task.source(folder) is None
        }


SUITES = {
    suite.name: suite
    for suite in (
        Suite("english26", "26 English tasks, zero-shot ranked and one-shot generated (Table 8)", english.TASKS),
        Suite("cot", "GSM8K, StrategyQA, CommonsenseQA and BIG-bench Hard with chains of thought", reasoning.TASKS),
        Suite("bbh", "BIG-bench Hard alone: 23 tasks in 27 files, 3-shot, chains of thought", reasoning.BBH_TASKS),
        Suite("mmlu", "57 subjects, 5-shot", mmlu.TASKS),
        Suite("mgsm", "word problems in ten languages, 8-shot, native chains of thought", multilingual.MGSM),
        Suite("tydiqa", "questions on a given passage in nine languages, 1-shot", multilingual.TYDIQA),
        Suite("xquad", "the same on XQuAD's twelve languages", multilingual.XQUAD),
        Suite("synthetic", "five 3-shot tasks for tiny models (evals.synthetic)", synthetic.TASKS, normalised=True),
        Suite("others", "tasks beside the paper's: BIG-bench in llm-foundry's form, SVAMP, AQuA", extras.TASKS),
        Suite("bbes", "21 emergent tasks of BIG-bench, 5-shot (Table 1)", bigbench.TASKS, normalised=True),
    )
}
"""Beside them, `infilling` has metrics of its own (`evals.humaneval`)."""


def find(name: str) -> Suite:
    """A suite by name.

    Raises:
        ValueError: unknown, with the nearest names.
    """
    if name not in SUITES:
        raise ValueError(f"no suite {name!r}: {suggest(name, SUITES)}")
    return SUITES[name]


Say = Callable[[str, int, int], None]
"""Told the task in hand, and of all questions how many of how many are done."""


class Average(NamedTuple):
    """Mean over the groups of a suite, each as much as another; the standard error is that of the rows alone."""

    mean: float
    se: float
    n_tasks: int
    is_whole: bool
    """Over all of the suite's tasks. If not, it is no number of the suite."""


@dataclass(frozen=True)
class SuiteResult:
    """What came of a suite."""

    suite: Suite
    results: Mapping[str, Result]
    not_run: Mapping[str, str]
    """Tasks without a result, each with the reason."""

    def score(self, name: str) -> tuple[float, float]:
        """Headline of a task and its standard error; 0 is chance and 1 perfect if the suite wants that."""
        result = self.results[name]
        scale = 1 - result.chance if self.suite.normalised else 1.0
        return (result.score.mean - self.suite.normalised * result.chance) / scale, result.score.se / scale

    def average(self) -> Average | None:
        """Of the tasks that ran; None if none did."""
        groups: dict[str, list[str]] = {}
        for task in self.suite.tasks:
            if task.name in self.results:
                groups.setdefault(task.group or task.name, []).append(task.name)
        if not groups:
            return None
        scores = [np.array([self.score(name) for name in names]) for names in groups.values()]
        means = np.array([s[:, 0].mean() for s in scores])
        variances = np.array([(s[:, 1] ** 2).sum() / len(s) ** 2 for s in scores])
        n, is_whole = len(self.results), len(self.results) == self.suite.n_tasks
        return Average(float(means.mean()), float(np.sqrt(variances.sum()) / len(scores)), n, is_whole)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        average = self.average()
        tasks = {}
        for task in self.suite.tasks:
            if task.name in self.results:
                r = self.results[task.name]
                tasks[task.name] = {
                    "score": self.score(task.name)[0],
                    "metrics": {name: e._asdict() for name, e in r.estimates.items()},
                    "chance": r.chance,
                    "n": r.score.n,
                    "n_official": task.n_official,
                    "n_shots": r.n_shots,
                    "n_questions_with_fewer_shots": r.n_dropped,
                    "n_questions_cut": r.n_cut,
                    "asked": r.sha256,
                    "printed": paper_numbers.TASKS[task.name]._asdict() if task.name in paper_numbers.TASKS else None,
                }
        return {
            "suite": self.suite.name,
            "normalised": self.suite.normalised,
            "average": average._asdict() if average is not None else None,
            "printed": paper_numbers.SUITES[self.suite.name]._asdict()
            if self.suite.name in paper_numbers.SUITES
            else None,
            "tasks": tasks,
            "not_run": dict(self.not_run),
        }


def run_suite(
    answers: Answers, suite: Suite, folder: Path, out: Path, *, limit: int | None = None, say: Say | None = None
) -> SuiteResult:
    """Evaluate all tasks whose files are in `folder`; what there is in `out` already is not asked again.

    A task whose exemplars or answers cannot fit the model is not run, and says so; damaged data stops the suite.

    Raises:
        ValueError: see `evaluate`; or the folder has none of the suite's files.
    """
    missing = suite.missing(folder)
    if len(missing) == len(suite.tasks):
        raise ValueError(
            f"{folder} has no file of suite {suite.name}; it looked for "
            + "; ".join(f"{what} ({name})" for name, what in list(missing.items())[:5])
            + (", ..." if len(missing) > 5 else ".")
        )
    results, not_run = {}, {name: f"no {what}" for name, what in missing.items()}
    there = [(task, task.load(folder, limit)) for task in suite.tasks if task.name not in missing]
    n_before, n_all = 0, sum(len(loaded.questions) for _, loaded in there)
    for task, loaded in there:

        def done(n: int, name: str = task.name, before: int = n_before) -> None:
            if say is not None:
                say(name, before + n, n_all)

        try:
            results[task.name] = evaluate(answers, task, loaded, out / f"{task.name}.jsonl", done=done)
        except TooShort as e:
            not_run[task.name] = str(e)
        n_before += len(loaded.questions)
    return SuiteResult(suite, results, not_run)


def save(path: Path, found: Mapping[str, Any]) -> None:
    """Write results, the file either whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
