"""Benchmark tasks as plain values: where the rows are, how a row becomes a question, how answers are scored.

`Ranked` tasks choose among given continuations by their likelihood; `Generated` tasks are answered greedily.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from upalm.evals import benchmark_files, text_metrics
from upalm.evals.benchmark_files import BenchmarkRow
from upalm.evals.text_metrics import Metric


class RowsTooShort(ValueError):
    """Raised when the model's rows are too short for a task."""


class NoQuestions(ValueError):
    """Raised when a file has rows of other tasks only."""


class Question(NamedTuple):
    """A row of a benchmark, as text."""

    prompt: str
    """Text up to the answer, which brings its own leading space."""
    choices: tuple[str, ...] = ()
    """Continuations of a ranked task."""
    gold: tuple[int, ...] = ()
    """Indices of the right choices."""
    answers: tuple[str, ...] = ()
    """Right answers of a generated task; any of them scores."""
    solution: str = ""
    """Text after the prompt in an exemplar, if not the right choice or the first answer."""
    contexts: tuple[str, ...] = ()
    """One prompt per choice in place of `prompt`, where the choices differ in what precedes them (Winograd)."""
    location: str = ""
    """File and line."""

    def as_exemplar(self) -> str:
        """Return the question with its solution."""
        if self.contexts:
            return self.contexts[self.gold[0]] + self.choices[self.gold[0]]
        return self.prompt + (self.solution or (self.choices[self.gold[0]] if self.choices else self.answers[0]))


BuildQuestion = Callable[[BenchmarkRow], Question | Sequence[Question]]
"""Function that builds one question, or several, from a row of a benchmark file."""


@dataclass(frozen=True)
class Source:
    """A file with the rows of a task, in one of the formats in which it is published."""

    file: str
    """Path below the data folder."""
    build: BuildQuestion | None = None
    """Builds one question, or several, from a row."""
    field: str = ""
    """Field with the rows, if the file is one JSON object."""
    shots: Callable[[Path], list[str]] | int = 0
    """Exemplars, given the data folder; or how many of the first questions serve as exemplars and are not scored."""
    build_from: Callable[[Path], BuildQuestion] | None = None
    """Makes `build` from the data folder, if another file there has the wording."""
    includes: Callable[[BenchmarkRow], bool] | None = None
    """Selects the task's rows; None selects all."""
    needs: tuple[str, ...] = ()
    """Other files below the data folder, which `shots` and `build_from` read."""

    def __post_init__(self):
        if isinstance(self.shots, int) and self.shots < 0:
            raise ValueError(
                f"{self.file}: shots is {self.shots}, expected 0 or more, or a function of the data folder."
            )

    def is_in(self, folder: Path) -> bool:
        """Whether the folder has all files of the source."""
        return all((folder / file).is_file() for file in (self.file, *self.needs))

    def load(self, folder: Path) -> "LoadedTask":
        """Read all questions of the file, and the exemplars.

        Raises:
            ValueError: rows of another format (file, line and field are named), or too few for the exemplars.
            NoQuestions: the file has rows of other tasks only.
        """
        questions: list[Question] = []
        build = self.build_from(folder) if self.build_from is not None else self.build
        if build is None:
            raise ValueError(f"the source {self.file} has neither build nor build_from: give it a function of a row.")
        for row in benchmark_files.read(folder / self.file, self.field):
            if self.includes is None or self.includes(row):
                built = build(row)
                for question in [built] if isinstance(built, Question) else built:
                    questions.append(_check(question, row.location))
        if not questions:
            raise NoQuestions(f"{folder / self.file} has no row of this task.")
        if callable(self.shots):
            return LoadedTask(questions, tuple(self.shots(folder)))
        if len(questions) <= self.shots:
            raise ValueError(
                f"{folder / self.file} has {len(questions)} questions, {self.shots} of them are exemplars."
            )
        return LoadedTask(questions[self.shots :], tuple(q.as_exemplar() for q in questions[: self.shots]))


class LoadedTask(NamedTuple):
    """Questions, and the exemplars that precede each."""

    questions: list[Question]
    shots: tuple[str, ...]


def _check(question: Question, location: str) -> Question:
    """Locate a question, and refuse one that cannot be scored."""
    if not isinstance(question, Question):
        raise ValueError(f"{location}: the task built {question!r:.80} from a row, expected a Question.")
    question = question._replace(location=question.location or location)
    for name in ("choices", "gold", "answers", "contexts"):
        if not isinstance(value := getattr(question, name), tuple | list):
            raise ValueError(f"{question.location}: the task built {name} as {value!r:.80}, expected a tuple.")
    n = len(question.choices)
    if any(not 0 <= g < n for g in question.gold) or (n and not question.gold):
        raise ValueError(f"{question.location}: the right choices are {list(question.gold)} of {n}.")
    if question.contexts and len(question.contexts) != n:
        raise ValueError(f"{question.location}: {len(question.contexts)} contexts for {n} choices.")
    if not n and not question.answers:
        raise ValueError(f"{question.location}: neither choices nor an answer.")
    return question


@dataclass(frozen=True)
class _Task:
    name: str
    sources: tuple[Source, ...]
    """Alternatives; the first whose file exists is read."""
    preamble: str = ""
    """Text before the exemplars."""
    separator: str = "\n\n"
    """Text after each exemplar."""
    n_official: int | None = None
    """Questions of the published set, if one number is known."""
    group: str = ""
    """Tasks of one group count as one in a suite's average."""

    def __post_init__(self):
        if not self.name or any(c in "/\\\0" for c in self.name):
            raise ValueError(
                f"a task is named {self.name!r}: its name is a file name, so it is not empty and has no /."
            )
        if not isinstance(self.sources, tuple | list) or not all(isinstance(s, Source) for s in self.sources):
            raise ValueError(f"task {self.name}: sources is {self.sources!r:.80}, expected a tuple of Source.")

    def find_source(self, folder: Path) -> Source | None:
        """Return the first source whose files are in the folder, or None."""
        return next((s for s in self.sources if s.is_in(folder)), None)

    def describe_files(self) -> str:
        """Return the files that the task can be run on, as text."""
        return " or ".join(" with ".join((source.file, *source.needs)) for source in self.sources)

    def load(self, folder: Path, limit: int | None = None) -> LoadedTask:
        """Read the questions (the first `limit`) and the exemplars.

        Raises:
            ValueError: no file, or rows of another format (file, line and field are named).
        """
        source = self.find_source(folder)
        if source is None:
            raise ValueError(f"{self.name} needs {self.describe_files()} in {folder}.")
        loaded = source.load(folder)
        return loaded._replace(questions=loaded.questions[:limit])


@dataclass(frozen=True)
class Ranked(_Task):
    """Rank classification: the answer is the choice with the highest log-probability."""

    unconditional: str = ""
    """If set, choices are also ranked by how much the question raises their log-probability over their
    log-probability after this text alone (GPT-3's normalisation for ARC, OpenBookQA and RACE)."""
    f1: bool = False
    """Score by F1 over the questions in place of accuracy; choice 1 is the positive class (MultiRC's F1a)."""


@dataclass(frozen=True)
class Generated(_Task):
    """Greedy generation, compared with the right answers; the best comparison counts."""

    max_new_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)
    """Strings that end the answer."""
    extract: Callable[[str], str] = str.strip
    """Finds the answer in the generated text."""
    metrics: dict[str, Metric] = field(default_factory=lambda: {"em": text_metrics.squad_exact})
    """Metrics by name; the first is the headline."""

    def __post_init__(self):
        super().__post_init__()
        if self.max_new_tokens < 1:
            raise ValueError(f"task {self.name}: max_new_tokens is {self.max_new_tokens}, expected at least 1.")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"task {self.name}: stop is {self.stop!r}, expected a tuple of strings, none empty.")
        if not self.metrics:
            raise ValueError(f"task {self.name} has no metrics: the first one is its headline.")


Task = Ranked | Generated
"""Benchmark task of either kind."""
