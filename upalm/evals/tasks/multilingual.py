"""MGSM (Shi et al. 2022), TydiQA with the gold passage, and XQuAD, which may stand in for it."""

import re
from functools import partial
from pathlib import Path

from upalm.evals import text_metrics
from upalm.evals.benchmark_files import BenchmarkRow, read
from upalm.evals.task import BuildQuestion, Generated, Question, Source, Task
from upalm.evals.text_metrics import DecimalMark, canonical_number, last_number, same_number

_LANGUAGES = ("es", "fr", "de", "ru", "zh", "ja", "th", "sw", "bn", "te")
_DECIMAL_COMMA = ("es", "fr", "de", "ru")


_LABEL = re.compile(r"^[^:：]*[:：]\s*")


def _find_label(row: BenchmarkRow, field: str) -> str:
    """Return the language's word for a question or a worked answer: the start of the exemplar, up to the colon."""
    label = _LABEL.match(row.text(field))
    if not label:
        raise row.error(field, row.text(field), "a label and a colon first")
    return label[0]


def _load_shots(file: str, folder: Path) -> list[str]:
    return [f"{row.text('question')}\n{row.text('cot_answer')}" for row in read(folder / file)]


def _make_builder(file: str, folder: Path) -> BuildQuestion:
    first = read(folder / file)[0]
    question, answer = _find_label(first, "question"), _find_label(first, "cot_answer").rstrip()

    def build(row: BenchmarkRow) -> Question:
        number = canonical_number(str(row.number("answer_number")))
        return Question(f"{question}{row.text('question')}\n{answer}", answers=(number,), solution=f" {number}")

    return build


def build_mgsm(language: str) -> Task:
    """Build the task of the 250 problems in one language."""
    decimal: DecimalMark = "," if language in _DECIMAL_COMMA else "."
    exemplars = f"mgsm/{language}_exemplars.json"
    build_from, shots = partial(_make_builder, exemplars), partial(_load_shots, exemplars)
    return Generated(
        f"mgsm_{language}",
        (Source(f"mgsm/{language}.jsonl", build_from=build_from, shots=shots, needs=(exemplars,)),),
        max_new_tokens=256,
        stop=("\n\n",),
        extract=partial(last_number, decimal=decimal),
        metrics={"em": same_number},
        n_official=250,
    )


MGSM: tuple[Task, ...] = tuple(map(build_mgsm, _LANGUAGES))


def build_passage(row: BenchmarkRow) -> Question:
    """Build a question on a passage from SQuAD's columns."""
    answers = tuple(dict.fromkeys(row.texts("answers.text")))
    prompt = f"{row.text('context')}\n\nQ: {row.text('question')}\n\nA:"
    return Question(prompt, answers=answers, solution=" " + answers[0])


def _is_in(language: str, row: BenchmarkRow) -> bool:
    return row.text("id").startswith(language)


_READING = {"em": text_metrics.squad_exact, "f1": text_metrics.squad_f1}


_TYDI = ("arabic", "bengali", "english", "finnish", "indonesian", "korean", "russian", "swahili", "telugu")


TYDIQA: tuple[Task, ...] = tuple(
    Generated(
        f"tydiqa_{language}",
        (Source("tydiqa/goldp_dev.jsonl", build_passage, shots=1, includes=partial(_is_in, language)),),
        metrics=_READING,
    )
    for language in _TYDI
)


XQUAD: tuple[Task, ...] = tuple(
    Generated(
        f"xquad_{language}",
        (Source(f"xquad/{language}.jsonl", build_passage, shots=1),),
        metrics=_READING,
        n_official=1190,
    )
    for language in ("en", "ar", "de", "el", "es", "hi", "ru", "th", "tr", "vi", "zh", "ro")
)
