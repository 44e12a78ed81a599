"""Cut gaps into held-out text."""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from upalm.data.readers import Document
from upalm.evals import text_metrics


class Gap(NamedTuple):
    """A text with k gaps: k + 1 kept parts around k missing spans."""

    parts: tuple[str, ...]
    spans: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """Length of the missing text in UTF-8."""
        return sum(len(span.encode()) for span in self.spans)


Cut = Callable[[str, random.Random], Gap | None]
"""Cuts a row from a text, or returns None if the drawn place does not serve."""

_LEFT, _RIGHT = 400, 200
"""Bytes of context before and after a gap."""

_WORD = re.compile(r"\w{3,}")


def cut_lines(documents: Sequence[Document], n: int, fits: Callable[[Gap], bool]) -> list[Gap]:
    """Cut single-line gaps: one whole line is missing, with up to 400 and 200 bytes of whole lines around it.

    Args:
        documents: drawn from with equal probability.
        n: number of rows; fewer come back if the text is too short.
        fits: accepts a row, for example if it fits the model.

    Raises:
        ValueError: the documents are too short for a single row.
    """
    return _draw_rows(_cut_line, documents, n, fits)


def cut_words(documents: Sequence[Document], n: int, fits: Callable[[Gap], bool]) -> list[Gap]:
    """Cut three gaps per row: three spans of 1 to 4 words, at least 3 words apart, in one window. See `cut_lines`."""
    return _draw_rows(_cut_words, documents, n, fits)


def cut_names(documents: Sequence[Document], n: int, fits: Callable[[Gap], bool]) -> list[Gap]:
    """Cut one word per row that the text after it has again and the text before it has not, such as a new name.

    Words have at least 3 letters, digits or `_`; windows and arguments are those of `cut_lines`.
    """
    return _draw_rows(_cut_name, documents, n, fits)


def fill_all_but_middle(rows: Sequence[Gap]) -> list[Gap]:
    """Keep the middle gap of each row of three: 1 to 4 words are missing, with text on both sides of their line."""
    return [
        Gap((r.parts[0] + r.spans[0] + r.parts[1], r.parts[2] + r.spans[2] + r.parts[3]), (r.spans[1],)) for r in rows
    ]


def _draw_rows(cut: Cut, documents: Sequence[Document], n: int, fits: Callable[[Gap], bool]) -> list[Gap]:
    """Draw rows, each from a random generator of its own, so that a longer list begins with the shorter one.

    They are drawn with replacement: a row may repeat an earlier one. Published figures are of such rows.
    """
    usable = [d for d in documents if len(d.text) > _LEFT + _RIGHT and "<extra_id_" not in d.text]
    if not usable:
        raise ValueError(f"no held-out document is longer than {_LEFT + _RIGHT} characters: give more text.")
    rows, n_cut = list[Gap](), 0
    for i in range(50 * n):
        if len(rows) == n:
            return rows
        rng = random.Random(f"{cut.__name__}:{i}")
        row = cut(rng.choice(usable).text, rng)
        if row is not None:
            n_cut += 1
            rows += [row] if fits(row) else []
    if n_cut and not rows:
        raise ValueError(
            f"none of {n_cut} gaps with {_LEFT} bytes before and {_RIGHT} after them fits the model's rows: "
            "longer rows are needed, and a base that was made for them."
        )
    if not rows:
        raise ValueError(
            "the held-out text has no place for a gap: lines of 8 to 60 characters with text around them are needed."
        )
    return rows


def _take_window(lines: list[str], i: int, left: int, right: int) -> tuple[str, str]:
    """Return whole lines before and after line i, up to `left` and `right` bytes."""
    before, after = "", ""
    for line in reversed(lines[:i]):
        if len((line + before).encode()) > left:
            break
        before = line + before
    for line in lines[i + 1 :]:
        if len((after + line).encode()) > right:
            break
        after += line
    return before, after


def _split_lines(text: str) -> list[str]:
    """Split at line feeds alone, and keep them."""
    *lines, last = text.split("\n")
    return [line + "\n" for line in lines] + [last]


def _cut_line(text: str, rng: random.Random) -> Gap | None:
    lines = _split_lines(text)
    i = rng.randrange(len(lines))
    span = lines[i].rstrip("\n")
    before, after = _take_window(lines, i, _LEFT, _RIGHT)
    if not 8 <= len(span.strip()) <= 60 or len(before) < _LEFT // 4 or len(after) < _RIGHT // 4:
        return None
    return Gap((before, "\n" + after), (span,))


def _cut_words(text: str, rng: random.Random) -> Gap | None:
    lines = _split_lines(text)
    i = rng.randrange(len(lines))
    before, after = _take_window(lines, i, (_LEFT + _RIGHT) // 2, (_LEFT + _RIGHT) // 2)
    window = before + lines[i] + after
    words = text_metrics.word_spans(window)
    if len(words) < 30:
        return None
    first, cuts = rng.randint(3, len(words) // 4), []
    for _ in range(3):
        n_words = rng.randint(1, 4)
        if first + n_words >= len(words):
            return None
        cuts.append((words[first][0], words[first + n_words - 1][1]))
        first += n_words + 3 + rng.randint(0, len(words) // 5)
    edges = [0, *(x for cut in cuts for x in cut), len(window)]
    pieces = [window[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    return Gap(tuple(pieces[0::2]), tuple(pieces[1::2]))


def _cut_name(text: str, rng: random.Random) -> Gap | None:
    lines = _split_lines(text)
    i = rng.randrange(len(lines))
    before, after = _take_window(lines, i, _LEFT, _RIGHT)
    if len(before) < _LEFT // 4 or len(after) < _RIGHT // 4:
        return None
    found, seen = [], set(_WORD.findall(before))
    for word in _WORD.finditer(lines[i]):
        name, rest = word[0], lines[i][word.end() :] + after
        if name not in seen and name in _WORD.findall(rest):
            found.append(Gap((before + lines[i][: word.start()], rest), (name,)))
        seen.add(name)
    return rng.choice(found) if found else None


def check_distinct(rows: Sequence[Gap], kind: str = "gaps") -> None:
    """Refuse rows of which no two differ, since `shuffle_suffixes` would give a row its own text back.

    Args:
        rows: of one kind.
        kind: its name, for the error.

    Raises:
        ValueError: there are fewer than two distinct rows.
    """
    if (n_distinct := len(set(rows))) < 2:
        raise ValueError(
            f"{kind}: {len(rows)} drawn, {n_distinct} distinct, expected at least 2 distinct ones, because the text "
            "after each is exchanged for another's: ask for more rows, and give more text or longer rows."
        )


def shuffle_suffixes(rows: Sequence[Gap]) -> list[Gap]:
    """Give every row the text after the last gap of another row, half the list away: the control of `infill_gain`.

    Of several gaps, the text after the last alone is exchanged: the text between them stays.

    Raises:
        ValueError: see `check_distinct`.
    """
    check_distinct(rows)
    shift = len(rows) // 2
    return [Gap((*row.parts[:-1], rows[(i + shift) % len(rows)].parts[-1]), row.spans) for i, row in enumerate(rows)]


def take_excerpts(documents: Sequence[Document], n: int, fits: Callable[[str], bool]) -> Iterator[str]:
    """Yield the first whole lines that fit, from each of up to `n` documents."""
    for document in documents[:n]:
        text = ""
        for line in document.text.split("\n"):
            if not fits(text + line + "\n"):
                break
            text += line + "\n"
        if text.strip():
            yield text
