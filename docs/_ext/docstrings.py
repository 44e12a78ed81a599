"""Docstrings as this project writes them, turned into reStructuredText.

Prose has Markdown's backticks for code, an indented block is shown as it is, and Args, Returns and Raises are Google's.
Nothing else is markup: asterisks, bars and underscores are themselves. So no docstring can break the page.
"""

import re
from collections.abc import Iterator

SECTIONS = ("Args", "Returns", "Raises", "Yields")


def to_rst(lines: list[str]) -> list[str]:
    """A docstring's lines, dedented, as reStructuredText."""
    return list(_blocks(lines))


def _blocks(lines: list[str]) -> Iterator[str]:
    i = 0
    while i < len(lines):
        line = lines[i]
        if (name := line.rstrip(":")) in SECTIONS and line.endswith(":"):
            body, i = _indented(lines, i + 1)
            yield from _section(name, body)
        elif line.startswith(">>> "):
            yield ""
            while i < len(lines) and lines[i].strip():
                yield lines[i]
                i += 1
            yield ""
        elif line.startswith("    ") or line.startswith("|"):
            body, i = _indented(lines, i) if line.startswith("    ") else _table(lines, i)
            yield from ("", "::", "", *("    " + text for text in body), "")
        else:
            text = line.removesuffix("::") + (":" if line.endswith("::") else "")
            yield inline(re.sub(r"^(\s*)-(?=\s)", r"\1-", text))
            i += 1
            if i < len(lines) and lines[i].startswith("    "):
                yield ""


def _indented(lines: list[str], i: int) -> tuple[list[str], int]:
    """The block from line i that is indented, blank lines inside it included."""
    body = []
    while i < len(lines) and (not lines[i].strip() or lines[i].startswith("    ")):
        body.append(lines[i][4:])
        i += 1
    while body and not body[-1].strip():
        body.pop()
    return body, i


def _table(lines: list[str], i: int) -> tuple[list[str], int]:
    body = []
    while i < len(lines) and lines[i].startswith("|"):
        body.append(lines[i])
        i += 1
    return body, i


def _section(name: str, body: list[str]) -> Iterator[str]:
    yield from ("", f":{name}:", "")
    entries = "\n".join(body)
    for entry in re.split(r"\n(?=\S)", entries):
        text = " ".join(part.strip() for part in entry.splitlines())
        term, colon, rest = text.partition(": ")
        if colon and re.fullmatch(r"[\w.*, ]+", term) and name != "Returns":
            text = f"``{term}``: {inline(rest)}"
        else:
            text = inline(text)
        yield f"    - {text}"
    yield ""


def inline(text: str) -> str:
    """One line of prose: code stays code, everything else is plain."""
    parts = re.split(r"(`+[^`]+`+)", text)
    out = ""
    for k, part in enumerate(parts):
        if k % 2:
            code = part.strip("`")
            before = "\\ " if out and re.match(r"\w", out[-1]) else ""
            after = "\\ " if k + 1 < len(parts) and re.match(r"\w", parts[k + 1][:1] or " ") else ""
            out += f"{before}``{code}``{after}"
        else:
            out += re.sub(r"([\\*|`]|(?<=\w)_(?!\w)|(?<!\w)_(?=\w))", r"\\\1", part)
    return out


def _process(app, what, name, obj, options, lines):
    lines[:] = to_rst(list(lines))


def setup(app):
    """Register."""
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True}
