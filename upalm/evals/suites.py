"""The paper's suites (U-PaLM section 4) by name, suites from a user's file, and their runs and averages."""

import json
import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from upalm.evals import paper_numbers
from upalm.evals.bootstrap import to_json
from upalm.evals.runner import Result, evaluate
from upalm.evals.scorer import Scorer
from upalm.evals.task import Generated, LoadedTask, NoQuestions, Ranked, RowsTooShort, Task
from upalm.evals.tasks import bigbench, english, extras, mmlu, multilingual, reasoning, synthetic
from upalm.files import write_atomically
from upalm.spelling import suggest


@dataclass(frozen=True)
class Suite:
    """Tasks that are averaged."""

    name: str
    description: str
    tasks: tuple[Task, ...]
    normalised: bool = False
    """Average scores of which 0 is chance and 1 is perfect (PaLM Appendix H)."""
    n_excluded: int = 0
    """Tasks that belong to the suite and are not among `tasks`."""

    def __post_init__(self):
        if not self.tasks:
            raise ValueError(f"suite {self.name} has no tasks.")
        names = [task.name for task in self.tasks]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"suite {self.name} has several tasks named {', '.join(sorted(repeated))}.")

    def select(self, names: tuple[str, ...]) -> "Suite":
        """Return the suite with some of its tasks, or all if no name is given.

        Raises:
            ValueError: unknown task, with the nearest.
        """
        known = {task.name: task for task in self.tasks}
        for name in names:
            if name not in known:
                raise ValueError(f"suite {self.name} has no task {name!r}: {suggest(name, known)}")
        selected = tuple(known[name] for name in dict.fromkeys(names)) or self.tasks
        return replace(self, tasks=selected, n_excluded=self.n_tasks - len(selected))

    @property
    def n_tasks(self) -> int:
        """Number of all tasks that belong to the suite."""
        return len(self.tasks) + self.n_excluded

    def find_missing(self, folder: Path) -> dict[str, str]:
        """Return the tasks without a file in the folder, each with the files that would serve."""
        return {task.name: task.describe_files() for task in self.tasks if task.find_source(folder) is None}


SUITES = {
    suite.name: suite
    for suite in (
        Suite("english26", "26 English tasks, zero-shot ranked and one-shot generated (Table 8)", english.TASKS),
        Suite("cot", "GSM8K, StrategyQA, CommonsenseQA and BIG-bench Hard with chains of thought", reasoning.TASKS),
        Suite("bbh", "BIG-bench Hard alone: 23 tasks in 27 files, 3-shot, chains of thought", reasoning.BBH_TASKS),
        Suite("mmlu", "57 subjects, 5-shot", mmlu.TASKS),
        Suite("mgsm", "word problems in ten languages, 8-shot, native chains of thought", multilingual.MGSM),
        Suite("tydiqa", "questions on a given passage in nine languages, 1-shot", multilingual.TYDIQA),
        Suite("xquad", "questions on a given passage in XQuAD's twelve languages, 1-shot", multilingual.XQUAD),
        Suite("synthetic", "five 3-shot tasks for tiny models", synthetic.TASKS, normalised=True),
        Suite("others", "tasks beside the paper's: BIG-bench in llm-foundry's form, SVAMP, AQuA", extras.TASKS),
        Suite("bbes", "21 emergent tasks of BIG-bench, 5-shot (Table 1)", bigbench.TASKS, normalised=True),
    )
}
"""Suites by name. The suite `infilling` is apart (`evals.infilling.suite`), as it has metrics of its own."""


def find_suite(name: str, others: tuple[str, ...] = ()) -> Suite:
    """Return a suite by name, or from a `.py` file (see `load_suite`).

    Args:
        name: of a suite, or of a file.
        others: suites that are not among `SUITES` and that the caller knows, for the error.

    Raises:
        ValueError: unknown suite, with the nearest name; or a file without a suite.
    """
    if name.endswith(".py"):
        return load_suite(Path(name))
    if name not in SUITES:
        raise ValueError(
            f"no suite {name!r}: {suggest(name, (*SUITES, *others))} A suite of your own is a file, ./mine.py."
        )
    return SUITES[name]


def load_suite(path: Path) -> Suite:
    """Run a Python file and return the suite that it defines.

    The file defines `SUITE`, a `Suite`; or `TASKS`, a sequence of `Ranked` and `Generated` tasks, which make a suite
    named after the file.

    Raises:
        ValueError: no such file; neither name is defined, or its value is of another type.
    """
    if not path.is_file():
        raise ValueError(f"no file {path}: --suite takes the name of a suite, or a Python file that defines one.")
    names = runpy.run_path(str(path))
    if "SUITE" in names:
        if not isinstance(names["SUITE"], Suite):
            raise ValueError(f"{path}: SUITE is {names['SUITE']!r:.80}, expected a upalm.evals.Suite.")
        suite = names["SUITE"]
    elif "TASKS" in names:
        suite = Suite(path.stem, f"the tasks of {path.name}", _check_tasks(path, names["TASKS"]))
    else:
        raise ValueError(f"{path} defines neither SUITE (a upalm.evals.Suite) nor TASKS (a list of tasks).")
    _check_tasks(path, suite.tasks)
    if not suite.name or any(c in "/\\\0" for c in suite.name) or suite.name in (".", ".."):
        raise ValueError(f"{path}: the suite is named {suite.name!r}: its name is a folder's, so it has no /.")
    if suite.name in SUITES:
        raise ValueError(f"{path}: the suite is named {suite.name}, as one of the package is: rename it.")
    return suite


def _check_tasks(path: Path, tasks: Any) -> tuple[Task, ...]:
    if not isinstance(tasks, list | tuple) or not all(isinstance(task, Ranked | Generated) for task in tasks):
        raise ValueError(f"{path}: the tasks are {tasks!r:.80}, expected a list of Ranked and Generated tasks.")
    return tuple(tasks)


Progress = Callable[[str, int, int], None]
"""Receives the current task, the number of answered questions, and the number of all questions."""


class Average(NamedTuple):
    """Mean over the groups of a suite, weighted equally; the standard error covers the sampling of rows only."""

    mean: float
    se: float
    n_tasks: int
    is_whole: bool
    """Whether all of the suite's tasks are in the mean. If not, it is no number of the suite."""


@dataclass(frozen=True)
class SuiteResult:
    """Results of a suite."""

    suite: Suite
    results: Mapping[str, Result]
    not_run: Mapping[str, str]
    """Tasks without a result, each with the reason."""

    def score(self, name: str) -> tuple[float, float]:
        """Return headline and standard error of a task, normalised (0 is chance, 1 perfect) if the suite says so.

        Raises:
            ValueError: normalised, and every choice is right.
        """
        result = self.results[name]
        if not self.suite.normalised:
            return result.score.mean, result.score.se
        if result.chance >= 1:
            raise ValueError(f"task {name}: all choices of all questions are right, so no score is above chance.")
        scale = 1 - result.chance
        return (result.score.mean - result.chance) / scale, result.score.se / scale

    def average(self) -> Average | None:
        """Return the average over the tasks that ran, or None if none did."""
        return self._average(self.score)

    def raw_average(self) -> Average | None:
        """Return the average of headlines that are not normalised, as the paper prints it."""
        return self._average(lambda name: (self.results[name].score.mean, self.results[name].score.se))

    def _average(self, score: Callable[[str], tuple[float, float]]) -> Average | None:
        groups: dict[str, list[str]] = {}
        for task in self.suite.tasks:
            if task.name in self.results:
                groups.setdefault(task.group or task.name, []).append(task.name)
        if not groups:
            return None
        scores = [np.array([score(name) for name in names]) for names in groups.values()]
        means = np.array([s[:, 0].mean() for s in scores])
        variances = np.array([(s[:, 1] ** 2).sum() / len(s) ** 2 for s in scores])
        n, is_whole = len(self.results), len(self.results) == self.suite.n_tasks
        return Average(float(means.mean()), float(np.sqrt(variances.sum()) / len(scores)), n, is_whole)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for results.json."""
        printed = paper_numbers.SUITES.get(self.suite.name)
        averages = {"average": self.average(), "raw_average": self.raw_average()}
        return {
            "suite": self.suite.name,
            "normalised": self.suite.normalised,
            **{name: x._asdict() if x is not None else None for name, x in averages.items()},
            "printed": printed._asdict() if printed is not None else None,
            "tasks": {task.name: self._task_json(task) for task in self.suite.tasks if task.name in self.results},
            "not_run": dict(self.not_run),
        }

    def _task_json(self, task: Task) -> dict[str, Any]:
        result, printed = self.results[task.name], paper_numbers.TASKS.get(task.name)
        return {
            "score": self.score(task.name)[0],
            "raw_score": result.score.mean,
            "metrics": to_json(result.estimates),
            "chance": result.chance,
            "n": result.score.n,
            "n_official": task.n_official,
            "n_shots": result.n_shots,
            "n_questions_with_fewer_shots": result.n_dropped,
            "n_questions_cut": result.n_cut,
            "asked": result.sha256,
            "printed": printed._asdict() if printed is not None else None,
        }


def run_suite(
    scorer: Scorer, suite: Suite, folder: Path, out: Path, *, limit: int | None = None, progress: Progress | None = None
) -> SuiteResult:
    """Evaluate the tasks whose files are in `folder`. Questions that `out` has records of are not answered again.

    A task whose exemplars or answers cannot fit the model is skipped with a reason; damaged data stops the suite.

    Raises:
        ValueError: see `evaluate`; or the folder has none of the suite's files.
    """
    missing = suite.find_missing(folder)
    if len(missing) == len(suite.tasks):
        files = "; ".join(f"{file} ({name})" for name, file in list(missing.items())[:5])
        more = ", ..." if len(missing) > 5 else "."
        raise ValueError(f"{folder} has no file of suite {suite.name}; it looked for {files}{more}")
    results: dict[str, Result] = {}
    not_run = {name: f"no {file}" for name, file in missing.items()}
    loaded: list[tuple[Task, LoadedTask]] = []
    for task in suite.tasks:
        try:
            loaded += [(task, task.load(folder, limit))] if task.name not in missing else []
        except NoQuestions as e:
            not_run[task.name] = str(e)
    n_before, n_all = 0, sum(len(questions) for _, (questions, _) in loaded)
    for task, questions in loaded:

        def report(n: int, name: str = task.name, before: int = n_before) -> None:
            if progress is not None:
                progress(name, before + n, n_all)

        try:
            results[task.name] = evaluate(scorer, task, questions, out / f"{task.name}.jsonl", progress=report)
        except RowsTooShort as e:
            not_run[task.name] = str(e)
        n_before += len(questions.questions)
    return SuiteResult(suite, results, not_run)


def save_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write results as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
