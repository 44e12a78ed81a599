"""Parse the words of a command line into a dataclass, with readable help and errors."""

import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

T = TypeVar("T")
_PACKAGE = Path(__file__).parent


def parse(target: type[T], words: Sequence[str], program: str, *, heading: str = "", default: T | None = None) -> T:
    """Parse `words` into the dataclass; for `--help` or a mistake, print and exit.

    Args:
        target: the dataclass, whose fields are the options.
        words: the command line after the program's name.
        program: what a user types to get here, for help and errors.
        heading: printed before the help.
        default: an instance whose fields are the defaults.

    Raises:
        SystemExit: status 0 after help, 2 after a mistake.
    """
    if heading and _wants_help(words):
        print(f"{heading.strip()}\n")
    return _cli(target, words, program, default=tyro.MISSING_NONPROP if default is None else default)


def parse_known(target: type[T], words: Sequence[str], program: str) -> tuple[T, list[str]]:
    """Parse the options of the dataclass, and return the other words beside it.

    Raises:
        SystemExit: status 0 after help, 2 after a mistake.
    """
    return _cli(target, words, program, return_unknown_args=True)


def refuse(message: str) -> NoReturn:
    """Print the mistake in a command line, and exit with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _wants_help(words: Sequence[str]) -> bool:
    return bool({"-h", "--help"} & set(words))


def _cli(target: Any, words: Sequence[str], program: str, **how: Any) -> Any:
    options = tyro._experimental_options
    config = (tyro.conf.AvoidSubcommands,)
    parse = partial(tyro.cli, target, prog=program, args=list(words), config=config, registry=_REGISTRY, **how)
    if _wants_help(words):
        options["ansi_codes"] = not os.environ.get("NO_COLOR")
        return parse()
    options["ansi_codes"] = options["utf8_boxes"] = False  # an error is taken out of its box
    said = io.StringIO()
    try:
        with set_columns(10_000), contextlib.redirect_stderr(said):
            return parse()
    except SystemExit:
        if not said.getvalue():
            raise
    finally:
        options["ansi_codes"] = options["utf8_boxes"] = True
    refuse(_plain(said.getvalue(), target.__name__, words, program))


# --- Help -----------------------------------------------------------------------------------------

_REGISTRY = ConstructorRegistry()


@_REGISTRY.primitive_rule
def _path_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Paths; help shows those in this package without the folder that holds it."""
    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=_read_path,
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=_show,
    )


@_REGISTRY.primitive_rule
def _optional_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Texts and paths that may be left out. Once given, `None` is a text or a path like any other."""
    if info.type not in (str | None, Path | None):
        return None
    kind, metavar, read = (
        (str, "STR", lambda words: words[0]) if info.type == str | None else (Path, "PATH", _read_path)
    )
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=_show,
    )


def _read_path(words: Sequence[str]) -> Path:
    if not words[0]:
        raise ValueError("expected a path, got an empty text.")
    if "://" in words[0]:
        raise ValueError(
            f"expected a path on a disk, got {words[0]}. Checkpoints of a run (--checkpoints.folder), its shards "
            "(--data.source) and what `upalm data build` writes may lie in a bucket."
        )
    return Path(words[0])


def _show(value: str | Path | None) -> list[str]:
    if isinstance(value, Path) and value.is_relative_to(_PACKAGE):
        value = value.relative_to(_PACKAGE.parent)
    return [str(value)]


# --- Mistakes -------------------------------------------------------------------------------------

_PYTHON_WORDS = {
    "could not convert string to float:": "expected a number, got",
    "invalid literal for int() with base 10:": "expected a whole number, got",
    "Expected 1 values.": "Expected 1 value.",
}


@contextlib.contextmanager
def set_columns(n: int) -> Iterator[None]:
    """Let help and errors be laid out for a terminal of `n` columns."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(n)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        os.environ |= {} if columns is None else {"COLUMNS": columns}


def _plain(boxed: str, target: str, words: Sequence[str], program: str) -> str:
    """Take an error of tyro out of its box, and name the option that the user typed."""
    lines = [line[2:].rstrip() for line in boxed.splitlines()[2:]]
    message = "\n".join(line for line in lines if "full helptext" not in line and not line.startswith(f"    {program}"))
    message = re.sub(r"\n-+(?=\n|$)|\nArgument helptext:", "", message).strip()
    for python, ours in _PYTHON_WORDS.items():
        message = message.replace(python, ours)
    message = message[0].lower() + message[1:]
    if nested := re.match(r"error parsing ([\w.-]+): ", message):
        group = nested[1]
        given = [word.partition("=")[0] for word in words if word.startswith(f"--{group}.")]
        message = f"{', '.join(given) or group}: ".removeprefix(f"{target}: ") + message[nested.end() :]
    if missing := re.match(r"missing value for argument '(-.*?)'", message):
        option = missing[1]
        value = next((b for a, b in zip(words, words[1:], strict=False) if a == option), "")
        if value.startswith("-"):
            message += f" A value that begins with - needs an equals sign: {option}={shlex.quote(value)}"
    return f"{message}\n`{program} --help` lists the options."
