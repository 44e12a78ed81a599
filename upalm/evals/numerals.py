"""Numbers in text, as answers of word problems."""

import re

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
