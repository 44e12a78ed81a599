"""MGSM (Shi et al. 2022), TydiQA with the gold passage, and XQuAD in its place where only that is at hand."""

import re
from functools import partial
from pathlib import Path

from upalm.evals import text_metrics
from upalm.evals.benchmark_files import BenchmarkRow, read
from upalm.evals.task import Ask, Generated, Question, Source, Task
from upalm.evals.text_metrics import canonical, last_number, same_number

_LANGUAGES = ("es", "fr", "de", "ru", "zh", "ja", "th", "sw", "bn", "te")


_LABEL = re.compile(r"^[^:：]*[:：]\s*")


def _label(row: BenchmarkRow, field: str) -> str:
    """What the language calls a question, or a worked answer: the exemplar's beginning, to the colon."""
    found = _LABEL.match(row.text(field))
    if not found:
        raise ValueError(f"{row.where}: field {field!r} begins with no label and colon.")
    return found[0]


def _exemplars(language: str, folder: Path) -> list[BenchmarkRow]:
    return read(folder / f"mgsm/{language}_exemplars.json")


def _mgsm_shots(language: str, folder: Path) -> list[str]:
    return [f"{row.text('question')}\n{row.text('cot_answer')}" for row in _exemplars(language, folder)]


def _mgsm_ask(language: str, folder: Path) -> Ask:
    first = _exemplars(language, folder)[0]
    question, answer = _label(first, "question"), _label(first, "cot_answer").rstrip()

    def ask(row: BenchmarkRow) -> Question:
        number = canonical(str(row.number("answer_number")))
        return Question(f"{question}{row.text('question')}\n{answer}", answers=(number,), solution=f" {number}")

    return ask


def mgsm(language: str) -> Task:
    """The 250 problems in one language."""
    source = Source(f"mgsm/{language}.jsonl", ask_in=partial(_mgsm_ask, language), shots=partial(_mgsm_shots, language))
    return Generated(
        *(f"mgsm_{language}", (source,)),
        max_new_tokens=256,
        stop=("\n\n",),
        extract=last_number,
        metrics={"em": same_number},
        n_official=250,
    )


MGSM: tuple[Task, ...] = tuple(map(mgsm, _LANGUAGES))


def _passage(row: BenchmarkRow) -> Question:
    """Columns of SQuAD."""
    answers = tuple(dict.fromkeys(row.texts("answers.text")))
    prompt = f"{row.text('context')}\n\nQ: {row.text('question')}\n\nA:"
    return Question(prompt, answers=answers, solution=" " + answers[0])


def _in(language: str, row: BenchmarkRow) -> bool:
    return row.text("id").startswith(language)


_READING = {"em": text_metrics.exact_words, "f1": text_metrics.f1}


_TYDI = ("arabic", "bengali", "english", "finnish", "indonesian", "korean", "russian", "swahili", "telugu")


TYDIQA: tuple[Task, ...] = tuple(
    Generated(
        f"tydiqa_{language}",
        (Source("tydiqa/goldp_dev.jsonl", _passage, shots=1, keep=partial(_in, language)),),
        metrics=_READING,
    )
    for language in _TYDI
)


XQUAD: tuple[Task, ...] = tuple(
    Generated(
        f"xquad_{language}",
        (Source(f"xquad/{language}.jsonl", _passage, shots=1),),
        metrics=_READING,
        n_official=1190,
    )
    for language in ("en", "ar", "de", "el", "es", "hi", "ru", "th", "tr", "vi", "zh", "ro")
)
