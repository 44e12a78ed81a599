r"""Compare a predicted text with the right one.

Every metric takes (prediction, gold) and is 1 for equal texts; `match_*` are true or false. Published metrics are
`squad_exact` and `squad_f1` (Rajpurkar et al. 2016), `trivia_exact` and `trivia_f1` (Joshi et al. 2017), and ROUGE-L
(Lin 2004) over words that whitespace separates.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Literal

import numpy as np

_REMOVE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_TRIVIA_SPACES = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))

# --- Code -----------------------------------------------------------------------------------------


def match_line(prediction: str, gold: str) -> bool:
    r"""Compare the first lines, indentation included (HumanEval infilling, single-line).

    >>> match_line("    return x  \n    return y", "    return x\n")
    True
    """
    return prediction.split("\n")[0].rstrip() == gold.split("\n")[0].rstrip()


def match_stripped_line(prediction: str, gold: str) -> bool:
    """Compare the first lines without their indentation."""
    return prediction.split("\n")[0].strip() == gold.split("\n")[0].strip()


def match_lines(prediction: str, gold: str) -> bool:
    """Compare all lines, without trailing blanks and outer blank lines (HumanEval infilling, multi-line)."""

    def strip_blanks(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")

    return strip_blanks(prediction) == strip_blanks(gold)


def match_text(prediction: str, gold: str) -> bool:
    """Compare every character, without trailing blanks (HumanEval infilling, random-span)."""
    return prediction.rstrip() == gold.rstrip()


def edit_similarity(prediction: str, gold: str) -> float:
    """Return 1 - Levenshtein distance / length of the longer text, in characters.

    >>> edit_similarity("kitten", "sitting")
    0.571...
    """
    longer = max(len(prediction), len(gold))
    return 1 - edit_distance(prediction, gold) / longer if longer else 1.0


def edit_distance(a: str, b: str) -> int:
    """Return the Levenshtein distance in characters."""
    codes = np.array([ord(c) for c in b])
    index = np.arange(len(b) + 1)
    row = index.copy()
    for i, c in enumerate(a, 1):
        replaced = np.minimum(row + 1, np.r_[i, row[:-1] + (codes != ord(c))])
        row = np.minimum.accumulate(replaced - index) + index  # insertions, left to right
    return int(row[-1])


# --- Words ----------------------------------------------------------------------------------------


def normalise_words(text: str) -> str:
    """Lower the case, remove ASCII punctuation, and leave single spaces."""
    return " ".join(text.lower().translate(_REMOVE_PUNCTUATION).split())


def normalise_squad(text: str) -> str:
    """Normalise an answer as SQuAD's evaluation does: `normalise_words`, and no English articles.

    >>> normalise_squad("The  Beatles!")
    'beatles'
    """
    return _drop_articles(text.lower().translate(_REMOVE_PUNCTUATION))


def normalise_trivia(text: str) -> str:
    """Normalise an answer as TriviaQA's evaluation does: punctuation and underscores become spaces.

    >>> normalise_trivia("The Jack-o’-lantern")
    'jack o lantern'
    """
    return _drop_articles(text.lower().translate(_TRIVIA_SPACES))


def _drop_articles(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text).split())


def match_words(prediction: str, gold: str) -> bool:
    """Compare after `normalise_words`; articles count, as a gap may hold nothing else."""
    return normalise_words(prediction) == normalise_words(gold)


def word_f1(prediction: str, gold: str) -> float:
    """Return the F1 of the words after `normalise_words`.

    >>> word_f1("the cat sat", "The cat, asleep")
    0.666...
    """
    return _bag_f1(normalise_words(prediction).split(), normalise_words(gold).split())


def squad_exact(prediction: str, gold: str) -> bool:
    """Compare as SQuAD does.

    >>> squad_exact("the Beatles", "Beatles")
    True
    """
    return normalise_squad(prediction) == normalise_squad(gold)


def squad_f1(prediction: str, gold: str) -> float:
    """Return SQuAD's F1 of the words.

    >>> squad_f1("the cat sat", "The cat, asleep")
    0.5
    """
    return _bag_f1(normalise_squad(prediction).split(), normalise_squad(gold).split())


def trivia_exact(prediction: str, gold: str) -> bool:
    """Compare as TriviaQA does."""
    return normalise_trivia(prediction) == normalise_trivia(gold)


def trivia_f1(prediction: str, gold: str) -> float:
    """Return TriviaQA's F1 of the words."""
    return _bag_f1(normalise_trivia(prediction).split(), normalise_trivia(gold).split())


def rouge_l(prediction: str, gold: str) -> float:
    """Return the F1 of the longest common subsequence of words. Splitting at whitespace serves every script.

    >>> rouge_l("b a c", "a b c")
    0.666...
    """
    a, b = prediction.split(), gold.split()
    row = [0] * (len(b) + 1)
    for x in a:
        previous, row = row, [0]
        for j, y in enumerate(b):
            row.append(previous[j] + 1 if x == y else max(row[j], previous[j + 1]))
    return _f1(row[-1], len(a), len(b))


def _bag_f1(predicted: list[str], gold: list[str]) -> float:
    return _f1((Counter(predicted) & Counter(gold)).total(), len(predicted), len(gold))


def _f1(n_common: int, n_predicted: int, n_gold: int) -> float:
    return 2 * n_common / (n_predicted + n_gold) if n_predicted + n_gold else 1.0


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return where each word of a text begins and ends."""
    return [m.span() for m in re.finditer(r"\S+", text)]


# --- Numbers --------------------------------------------------------------------------------------

DecimalMark = Literal[".", ","]
"""`.` in English, Chinese, Japanese, Thai, Swahili, Bengali and Telugu; `,` in Spanish, French, German and Russian."""

_NARROW_SPACES = "\u00a0\u2009\u202f"
_ASCII_MARKS = str.maketrans({"−": "-", "－": "-", "．": ".", "٫": ".", "٬": ","})


@cache
def _number_pattern(decimal: DecimalMark) -> re.Pattern[str]:
    """Build the pattern of a number: sign, currency, digits in groups, fraction."""
    mark, other = re.escape(decimal), re.escape("," if decimal == "." else ".")
    spaces = _NARROW_SPACES + (" " if decimal == "," else "")  # "12 345" is one number where commas are decimal marks
    first, group = r"[1-9]\d{0,2}", r"\d{3}(?!\d)"
    shapes = (
        rf"{first}(?:,\d{{3}})+\.\d+|{first}(?:\.\d{{3}})+,\d+",  # both marks: no doubt which is which
        rf"{first}(?:,\d{{3}}){{2,}}(?!\d)|{first}(?:\.\d{{3}}){{2,}}(?!\d)",  # several groups: likewise
        rf"[1-9]\d?(?:,\d{{2}})+,{group}(?:\.\d+)?",  # lakh and crore
        rf"{first}(?P<space>[{spaces}'’])\d{{3}}(?:(?P=space)\d{{3}})*(?!\d)(?:{mark}\d+)?",
        rf"{first}{other}{group}(?:{mark}\d+)?",
        *((rf"0{other}\d+", rf"\d+{other}(?!\d{{3}}(?!\d))\d+") if decimal == "," else ()),  # "0.30" in Spanish
        rf"\d+(?:{mark}\d+)?",
        rf"(?<![\w.,]){mark}\d+",
    )
    currency = r"(?:US)?\\?[$€£¥₹₽৳฿₩￥＄]"
    sign = r"(?:(?<![\w)\]%])(?P<sign>[-–]))?"
    return re.compile(rf"{sign}(?:{currency}(?P<inner>-)?)?(?P<digits>{'|'.join(shapes)})")


def find_numbers(text: str, decimal: DecimalMark = ".") -> Iterator[str]:
    """Yield the numbers in a text, each in the form of `canonical_number`.

    A minus sign counts before or after a currency sign, and not after a word or digit: "10-5" holds 10 and 5.

    >>> list(find_numbers("-$5, 1,250.00 and 10-5")), list(find_numbers("1 250,5 €", ","))
    (['-5', '1250', '10', '5'], ['1250.5'])
    """
    for match in _number_pattern(decimal).finditer(_to_ascii_digits(text)):
        yield _normal_form(match, decimal)


def last_number(text: str, decimal: DecimalMark = ".") -> str:
    """Return the last number of a text in canonical form, or an empty string.

    >>> last_number("That makes 1,200 dollars. The answer is $1,250.00.")
    '1250'
    """
    return next(reversed(list(find_numbers(text, decimal))), "")


def canonical_number(text: str, decimal: DecimalMark = ".") -> str:
    """Write a number without separators and trailing zeros, in ASCII digits. Other text comes back unchanged.

    >>> canonical_number("১১.50"), canonical_number("a lot")
    ('11.5', 'a lot')
    """
    match = _number_pattern(decimal).fullmatch(_to_ascii_digits(text.strip()))
    if match is not None:
        return _normal_form(match, decimal)
    try:
        value = Decimal(text)  # such as 1e22
    except InvalidOperation:
        return text
    return _plain(value) if value.is_finite() else text


def same_number(prediction: str, answer: str) -> bool:
    """Compare as numbers, exactly."""
    return canonical_number(prediction) == canonical_number(answer)


def _to_ascii_digits(text: str) -> str:
    """Write the digits of any script as ASCII; a full-width comma separates only full-width digits."""
    text = re.sub(r"(?<=[０-９])，(?=[０-９]{3}(?![０-９]))", ",", text)
    return re.sub(r"\d", lambda digit: str(int(digit[0])), text.translate(_ASCII_MARKS))


def _normal_form(match: re.Match[str], decimal: DecimalMark) -> str:
    digits = re.sub(rf"[{_NARROW_SPACES} '’]", "", match["digits"])
    marks = re.findall("[.,]", digits)
    whole, mark, fraction = digits.rpartition(marks[-1]) if marks else (digits, "", "")
    if mark and (len(marks) > 1 and mark in whole or mark != decimal and len(fraction) == 3 and whole[0] != "0"):
        whole, fraction = whole + fraction, ""  # the mark separates groups
    value = Decimal(f"{re.sub('[.,]', '', whole) or 0}.{fraction or 0}")
    return _plain(value.copy_negate() if match["sign"] or match["inner"] else value)


def _plain(value: Decimal) -> str:
    """Write every digit; arithmetic on decimals, such as `normalize`, would round to 28."""
    text = format(value, "f") if value else "0"
    return text.rstrip("0").rstrip(".") if "." in text else text


Metric = Callable[[str, str], float]
"""Takes (prediction, gold); 1 is a match."""
