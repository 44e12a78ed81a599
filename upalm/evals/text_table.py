"""Plain-text tables: the same in a terminal, in a pipe and in a file."""

from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", n_left: int = 1) -> str:
    """Align rows under a header: the first `n_left` columns to the left, the others to the right.

    >>> print(format_table(("model", "bits"), [("base", "1.5"), ("ul2r", "12.25")], title="Gaps"))
    Gaps
    model   bits
    base     1.5
    ul2r   12.25
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(x.ljust(w) if i < n_left else x.rjust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True)))
        for row in (header, *rows)
    ]
    return "\n".join(line.rstrip() for line in ([title, *lines] if title else lines))
