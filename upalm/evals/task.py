"""A benchmark task as a plain value: where its rows are, how one is asked, and how answers are judged.

`Ranked` tasks choose among given continuations by their likelihood, `Generated` ones are answered greedily.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from upalm.evals import benchmark_files, text_metrics
from upalm.evals.benchmark_files import BenchmarkRow


class TooShort(ValueError):
    """The model's rows are too short for a task."""


class Question(NamedTuple):
    """A row of a benchmark, as text."""

    prompt: str
    """Up to where the answer begins; that brings its own space."""
    choices: tuple[str, ...] = ()
    """Of a ranked task."""
    gold: tuple[int, ...] = ()
    """The right ones among them."""
    answers: tuple[str, ...] = ()
    """Of a generated task: any of them is right."""
    solution: str = ""
    """What an exemplar shows after the prompt, if not the right choice or the first answer."""
    contexts: tuple[str, ...] = ()
    """A prompt for each choice in place of `prompt`: the choices differ in what comes before (Winograd)."""
    where: str = ""

    def solved(self) -> str:
        """The row as an exemplar."""
        if self.contexts:
            return self.contexts[self.gold[0]] + self.choices[self.gold[0]]
        shown = self.solution or (self.choices[self.gold[0]] if self.choices else self.answers[0])
        return self.prompt + shown


Ask = Callable[[BenchmarkRow], Question | Sequence[Question]]


@dataclass(frozen=True)
class Source:
    """A file that has the rows of a task, one of several forms that it is passed around in."""

    file: str
    """Below the data folder."""
    ask: Ask | None = None
    """Makes one question of a row, or several."""
    field: str = ""
    """Where the rows are in a file that is one JSON object."""
    shots: Callable[[Path], list[str]] | int = 0
    """Exemplars, given the data folder; or how many of the file's first questions serve as such, and are not asked."""
    ask_in: Callable[[Path], Ask] | None = None
    """Gives `ask`, where its wording is in another file of the data folder."""
    keep: Callable[[BenchmarkRow], bool] | None = None
    """Which rows of the file belong to the task; all, if None."""

    def load(self, folder: Path) -> "Loaded":
        """All questions of the file, and the exemplars."""
        found: list[Question] = []
        ask = self.ask_in(folder) if self.ask_in is not None else self.ask
        assert ask is not None
        for row in benchmark_files.read(folder / self.file, self.field):
            if self.keep is None or self.keep(row):
                asked = ask(row)
                several = [asked] if isinstance(asked, Question) else asked
                found += [_checked(question._replace(where=question.where or row.where)) for question in several]
        if callable(self.shots):
            return Loaded(found, tuple(self.shots(folder)))
        if len(found) <= self.shots:
            raise ValueError(f"{folder / self.file} has {len(found)} questions, {self.shots} of them are exemplars.")
        return Loaded(found[self.shots :], tuple(question.solved() for question in found[: self.shots]))


class Loaded(NamedTuple):
    """Questions, and the exemplars that go before each."""

    questions: list[Question]
    shots: tuple[str, ...]


def _checked(question: Question) -> Question:
    """Refuse what cannot be judged."""
    n = len(question.choices)
    if any(not 0 <= g < n for g in question.gold) or (n and not question.gold):
        raise ValueError(f"{question.where}: the right choices are {list(question.gold)} of {n}.")
    if question.contexts and len(question.contexts) != n:
        raise ValueError(f"{question.where}: {len(question.contexts)} contexts for {n} choices.")
    if not n and not question.answers:
        raise ValueError(f"{question.where}: neither choices nor an answer.")
    return question


@dataclass(frozen=True)
class _Task:
    name: str
    sources: tuple[Source, ...]
    """The first whose file there is counts."""
    preamble: str = ""
    """Before the exemplars."""
    between: str = "\n\n"
    """After each exemplar."""
    n_official: int | None = None
    """Questions of the published set, where one number is known."""
    group: str = ""
    """Tasks of one group count as one in a suite's average."""

    def source(self, folder: Path) -> Source | None:
        """The file that is there, if any."""
        return next((s for s in self.sources if (folder / s.file).is_file()), None)

    def load(self, folder: Path, limit: int | None = None) -> Loaded:
        """Questions (the first `limit`) and exemplars.

        Raises:
            ValueError: no file, or rows that are not the task's (file, line and field are named).
        """
        source = self.source(folder)
        if source is None:
            raise ValueError(f"{self.name} needs {' or '.join(s.file for s in self.sources)} in {folder}.")
        loaded = source.load(folder)
        return loaded._replace(questions=loaded.questions[:limit])


@dataclass(frozen=True)
class Ranked(_Task):
    """Rank classification: the choice with the highest log-probability."""

    unconditional: str = ""
    """If set, choices are also ranked by how much the question raises their log-probability over that after this
    text alone (GPT-3's for ARC, OpenBookQA and RACE)."""
    f1: bool = False
    """Score by F1 over the questions, of which choice 1 is the positive (MultiRC's f1a), in place of accuracy."""


Metric = Callable[[str, str], float]


def _cut(prediction: str) -> str:
    return prediction.strip()


@dataclass(frozen=True)
class Generated(_Task):
    """Greedy generation, judged against the answers; the best of several counts."""

    max_new_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)
    """Strings that end the answer."""
    extract: Callable[[str], str] = _cut
    """What of the text is the answer."""
    metrics: dict[str, Metric] = field(default_factory=lambda: {"em": text_metrics.exact_words})
    """By name; the first is the headline."""


Task = Ranked | Generated
