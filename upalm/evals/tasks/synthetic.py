"""A few-shot suite that models of a million parameters can partly do, made by the project: no file to get, no language.

Words are made of syllables, so that none is rarer than another. All choices of a question have as many words.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

from upalm.evals.benchmark_files import BenchmarkRow
from upalm.evals.task import Question, Ranked, Source, Task

_SHOTS = 3


_SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]


_PAIRS = {"(": ")", "[": "]", "{": "}"}


_Solved = tuple[str, str, list[str]]
"""A prompt, its answer, and wrong answers."""


def _word(rng: random.Random) -> str:
    return "".join(rng.choices(_SYLLABLES, k=2))


def _words(rng: random.Random, n: int) -> list[str]:
    found: list[str] = []
    while len(found) < n:
        word = _word(rng)
        if word not in found:
            found.append(word)
    return found


def _copying(rng: random.Random) -> _Solved:
    """Say it again."""
    words = _words(rng, 6)
    right, others = words[:3], words[3:]
    wrong = [[right[1], right[0], right[2]], [right[0], others[0], right[2]], others]
    return f"{' '.join(right)} =", " ".join(right), [" ".join(w) for w in wrong]


def _lookup(rng: random.Random) -> _Solved:
    """Which word went with this one?"""
    words = _words(rng, 8)
    keys, values = words[:4], words[4:]
    i = rng.randrange(4)
    table = ", ".join(f"{k} {v}" for k, v in zip(keys, values, strict=True))
    return f"{table}; {keys[i]} =", values[i], [v for v in values if v != values[i]]


def _list_editing(rng: random.Random) -> _Solved:
    """The list without its marked word."""
    words = _words(rng, 4)
    i = rng.randrange(4)
    outs = [" ".join(w for j, w in enumerate(words) if j != k) for k in range(4)]
    return f"{' '.join(words)} - {words[i]} =", outs[i], [out for k, out in enumerate(outs) if k != i]


def _arithmetic(rng: random.Random) -> _Solved:
    """Sums below ten."""
    total = rng.randint(2, 9)
    a = rng.randint(1, total - 1)
    wrong = rng.sample([n for n in range(2, 10) if n != total], 3)
    return f"{a} + {total - a} =", str(total), [str(n) for n in wrong]


def _brackets(rng: random.Random) -> _Solved:
    """Close what is open."""
    opened = rng.choices("([{", k=3)
    right = [_PAIRS[c] for c in reversed(opened)]
    wrong: list[list[str]] = []
    while len(wrong) < 3:
        other = rng.choices(list(_PAIRS.values()), k=3)
        if other != right and other not in wrong:
            wrong.append(other)
    return f"{' '.join(opened)} =", " ".join(right), [" ".join(w) for w in wrong]


MAKERS: dict[str, Callable[[random.Random], _Solved]] = {
    "copying": _copying,
    "lookup": _lookup,
    "list_editing": _list_editing,
    "arithmetic": _arithmetic,
    "brackets": _brackets,
}


def write(folder: Path, n: int = 200) -> None:
    """The files of the suite, `n` questions a task; question i depends on its task and i alone."""
    (folder / "synthetic").mkdir(parents=True, exist_ok=True)
    for name, make in MAKERS.items():
        lines = []
        for i in range(n):
            rng = random.Random(f"{name}:{i}")
            solved = [make(rng) for _ in range(_SHOTS + 1)]
            shots = "".join(f"{prompt} {answer}\n" for prompt, answer, _ in solved[:-1])
            prompt, answer, wrong = solved[-1]
            choices = [answer, *wrong]
            rng.shuffle(choices)
            row = {"query": shots + prompt, "choices": choices, "gold": choices.index(answer)}
            lines.append(json.dumps(row) + "\n")
        (folder / "synthetic" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _ask(row: BenchmarkRow) -> Question:
    choices = tuple(" " + c for c in row.texts("choices"))
    return Question(row.text("query"), choices, (row.choice("gold", len(choices)),))


TASKS: tuple[Task, ...] = tuple(
    Ranked(f"synthetic_{name}", (Source(f"synthetic/{name}.jsonl", _ask),)) for name in MAKERS
)
