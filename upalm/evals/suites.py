"""The paper's suites (U-PaLM section 4), by name."""

import difflib
from dataclasses import dataclass, replace
from pathlib import Path

from upalm.evals import bigbench, english, mmlu, multilingual, others, reasoning, synthetic
from upalm.evals.task import Task


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
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
                raise ValueError(f"suite {self.name} has no task {name!r}: {hint}")
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
        Suite("others", "tasks beside the paper's: BIG-bench in llm-foundry's form, SVAMP, AQuA", others.TASKS),
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
        near = difflib.get_close_matches(name, SUITES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(SUITES)}."
        raise ValueError(f"no suite {name!r}: {hint}")
    return SUITES[name]
