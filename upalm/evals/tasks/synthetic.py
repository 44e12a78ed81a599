"""Few-shot tasks that models of a million parameters can partly do, generated here: no files to get, no language.

Words are random syllables, so that none is rarer than another. All choices of a question have equally many words.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

from upalm.evals.task import Ranked, Source, Task
from upalm.evals.tasks.bigbench import build_foundry

_SHOTS = 3


_SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]


_PAIRS = {"(": ")", "[": "]", "{": "}"}


_Example = tuple[str, str, list[str]]
"""Prompt, answer and wrong answers."""


def _draw_words(rng: random.Random, n: int) -> list[str]:
    words: list[str] = []
    while len(words) < n:
        word = "".join(rng.choices(_SYLLABLES, k=2))
        if word not in words:
            words.append(word)
    return words


def _draw_copying(rng: random.Random) -> _Example:
    """Repeat three words."""
    words = _draw_words(rng, 6)
    right, others = words[:3], words[3:]
    wrong = [[right[1], right[0], right[2]], [right[0], others[0], right[2]], others]
    return f"{' '.join(right)} =", " ".join(right), [" ".join(w) for w in wrong]


def _draw_lookup(rng: random.Random) -> _Example:
    """Find the word that is paired with a given one."""
    words = _draw_words(rng, 8)
    keys, values = words[:4], words[4:]
    i = rng.randrange(4)
    table = ", ".join(f"{k} {v}" for k, v in zip(keys, values, strict=True))
    return f"{table}; {keys[i]} =", values[i], [v for v in values if v != values[i]]


def _draw_list_editing(rng: random.Random) -> _Example:
    """Remove the marked word from a list."""
    words = _draw_words(rng, 4)
    i = rng.randrange(4)
    outs = [" ".join(w for j, w in enumerate(words) if j != k) for k in range(4)]
    return f"{' '.join(words)} - {words[i]} =", outs[i], [out for k, out in enumerate(outs) if k != i]


def _draw_arithmetic(rng: random.Random) -> _Example:
    """Add two numbers to a sum below ten."""
    total = rng.randint(2, 9)
    a = rng.randint(1, total - 1)
    wrong = rng.sample([n for n in range(2, 10) if n != total], 3)
    return f"{a} + {total - a} =", str(total), [str(n) for n in wrong]


def _draw_brackets(rng: random.Random) -> _Example:
    """Close open brackets in reverse order."""
    opened = rng.choices("([{", k=3)
    right = [_PAIRS[c] for c in reversed(opened)]
    wrong: list[list[str]] = []
    while len(wrong) < 3:
        other = rng.choices(list(_PAIRS.values()), k=3)
        if other != right and other not in wrong:
            wrong.append(other)
    return f"{' '.join(opened)} =", " ".join(right), [" ".join(w) for w in wrong]


GENERATORS: dict[str, Callable[[random.Random], _Example]] = {
    "copying": _draw_copying,
    "lookup": _draw_lookup,
    "list_editing": _draw_list_editing,
    "arithmetic": _draw_arithmetic,
    "brackets": _draw_brackets,
}


def write(folder: Path, n: int = 200) -> None:
    """Write the files of the suite, `n` questions per task; question i depends on its task and i alone."""
    (folder / "synthetic").mkdir(parents=True, exist_ok=True)
    for name, draw in GENERATORS.items():
        lines = []
        for i in range(n):
            rng = random.Random(f"{name}:{i}")
            examples = [draw(rng) for _ in range(_SHOTS + 1)]
            shots = "".join(f"{prompt} {answer}\n" for prompt, answer, _ in examples[:-1])
            prompt, answer, wrong = examples[-1]
            choices = [answer, *wrong]
            rng.shuffle(choices)
            row = {"query": shots + prompt, "choices": choices, "gold": choices.index(answer)}
            lines.append(json.dumps(row) + "\n")
        (folder / "synthetic" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


TASKS: tuple[Task, ...] = tuple(
    Ranked(f"synthetic_{name}", (Source(f"synthetic/{name}.jsonl", build_foundry),)) for name in GENERATORS
)
