"""How alike a prediction and the missing text are.

Every function takes (prediction, gold) and is 1 for equal texts; `exact_*` are true or false.
"""

import re
import string
from collections import Counter

import numpy as np

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_line(prediction: str, gold: str) -> bool:
    r"""The first line, with its indentation (HumanEval infilling, single-line).

    >>> exact_line("    return x  \n    return y", "    return x\n")
    True
    """
    return prediction.split("\n")[0].rstrip() == gold.split("\n")[0].rstrip()


def exact_stripped_line(prediction: str, gold: str) -> bool:
    """The first line, without its indentation."""
    return prediction.split("\n")[0].strip() == gold.split("\n")[0].strip()


def exact_lines(prediction: str, gold: str) -> bool:
    """All lines, trailing blanks and blank lines at the ends aside (HumanEval infilling, multi-line)."""

    def lines(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")

    return lines(prediction) == lines(gold)


def exact_text(prediction: str, gold: str) -> bool:
    """Every byte, trailing blanks aside (HumanEval infilling, random-span)."""
    return prediction.rstrip() == gold.rstrip()


def edit_similarity(prediction: str, gold: str) -> float:
    """1 - Levenshtein distance / length of the longer, in characters.

    >>> edit_similarity("kitten", "sitting")
    0.571...
    """
    longer = max(len(prediction), len(gold))
    return 1 - _edit_distance(prediction, gold) / longer if longer else 1.0


def _edit_distance(a: str, b: str) -> int:
    codes = np.array([ord(c) for c in b])
    index = np.arange(len(b) + 1)
    row = index.copy()
    for i, c in enumerate(a, 1):
        new = np.minimum(row + 1, np.r_[i, row[:-1] + (codes != ord(c))])
        row = np.minimum.accumulate(new - index) + index  # insertions, left to right
    return int(row[-1])


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation, single spaces."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def exact_words(prediction: str, gold: str) -> bool:
    """Equal once normalised."""
    return normalised(prediction) == normalised(gold)


def f1(prediction: str, gold: str) -> float:
    """SQuAD's F1 of the words.

    >>> f1("the cat sat", "The cat, asleep")
    0.666...
    """
    a, b = normalised(prediction).split(), normalised(gold).split()
    return _f1((Counter(a) & Counter(b)).total(), len(a), len(b))


def rouge_l(prediction: str, gold: str) -> float:
    """F1 of the longest common subsequence of words, split at whitespace: so for every script.

    >>> rouge_l("b a c", "a b c")
    0.666...
    """
    a, b = prediction.split(), gold.split()
    row = [0] * (len(b) + 1)
    for x in a:
        before = row
        row = [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(row[j], before[j + 1]))
    return _f1(row[-1], len(a), len(b))


def _f1(n_common: int, n_predicted: int, n_gold: int) -> float:
    return 2 * n_common / (n_predicted + n_gold) if n_predicted + n_gold else 1.0


def words(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end."""
    return [m.span() for m in re.finditer(r"\S+", text)]


_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(text: str) -> str:
    """The last number, in whatever script's digits; empty if there is none.

    >>> last_number("That makes 1,200 dollars. The answer is $1,250.00.")
    '1250'
    """
    found = _NUMBER.findall(text)
    return canonical(found[-1]) if found else ""


def canonical(number: str) -> str:
    """Without separators, trailing zeros and the digits' script; anything else as it is.

    >>> canonical("১১.50"), canonical("a lot")
    ('11.5', 'a lot')
    """
    try:
        value = float(number.replace(",", ""))
    except ValueError:
        return number
    return str(int(value)) if value.is_integer() else str(value)


def same_number(prediction: str, answer: str) -> bool:
    """Equal as numbers."""
    return canonical(prediction) == canonical(answer)
