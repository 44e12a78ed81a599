"""The `upalm` command: one table of commands, and one parser for each."""

import codecs
import io
import os
import select
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from upalm._version import __version__
from upalm.spelling import suggest
from upalm.terminal import printable

COMMANDS = {
    "run": ("upalm.cli.run:Run", "Train with a recipe, or resume a run folder."),
    "recipes": ("upalm.cli.recipes:Recipes", "List the recipes and their configs."),
    "recipes show": ("upalm.cli.recipes:Show", "Print the file of a recipe."),
    "recipes cp": ("upalm.cli.recipes:Copy", "Copy a recipe to edit it."),
    "plan": ("upalm.cli.plan:Plan", "Plan a recipe on TPUs or GPUs not at hand, or on this machine."),
    "infill": ("upalm.cli.infer:Infill", "Fill the gaps <extra_id_0>, <extra_id_1>, ... of a text."),
    "sample": ("upalm.cli.infer:Sample", "Continue a prompt."),
    "data build": ("upalm.cli.data:Build", "Tokenise text into shards for training."),
    "data show": ("upalm.cli.data:Show", "Print rows of a mixture in colour, with statistics."),
    "data check": ("upalm.cli.data:Check", "Verify the checksum of every shard."),
    "eval": ("upalm.cli.evaluate:Eval", "Measure a checkpoint on held-out text or benchmark suites."),
    "eval fetch": ("upalm.cli.fetch:Fetch", "Fetch the public files of a suite from the Hugging Face hub."),
    "scaling": ("upalm.cli.scaling:Scaling", "Compute how much training UL2R saves, from evaluations."),
    "import-hf": ("upalm.cli.interop:ImportHf", "Convert a Hugging Face checkpoint into one of upalm."),
    "import-palm": ("upalm.cli.interop:ImportPalm", "Convert a PaLM-rlhf-pytorch file into a checkpoint."),
    "export-hf": ("upalm.cli.interop:ExportHf", "Convert a checkpoint into one of transformers."),
    "env": ("upalm.cli.env:Env", "Print versions, platform and devices, for a bug report."),
    "cite": ("upalm.cli.cite:Cite", "Print BibTeX of upalm, U-PaLM, UL2 and PaLM."),
}
"""Each command's class and summary, the first line of its docstring. A class is imported when its command runs.

A command is a frozen dataclass: its fields are the options, `__call__` runs it. A class that passes options on to a
recipe has a class method `parse(words)`.
"""

COMPUTING = ("run", "infill", "sample", "eval")
"""Commands that gain from huge pages."""

OTHER_WORDS = {
    "train": "run",
    "finetune": "run finetune",
    "generate": "sample",
    "complete": "sample",
    "export": "export-hf",
    "import": "import-hf",
    "version": "--version",
    "devices": "env",
}
"""Names that other programs give to commands."""

INTERRUPTED, READER_GONE = 130, 141
"""Statuses that shells give a process ended by SIGINT and by SIGPIPE."""


def main() -> None:
    """Run the command line. A user's mistake ends in one line, a bug in a traceback."""
    words = sys.argv[1:]
    _open_streams()
    try:
        dispatch(words)
        sys.stdout.flush()
    except KeyboardInterrupt as e:
        print(f"interrupted: {e}" if str(e) else "interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except SystemExit as e:
        if isinstance(e.__context__, BrokenPipeError):  # rich ends so
            _end_silently()
        raise
    except (ValueError, FloatingPointError, OSError) as e:
        if isinstance(e, BrokenPipeError) and _reader_is_gone():
            _end_silently()
        if isinstance(e, OSError) and e.strerror and concerns_user(e, words):
            place = "" if e.filename is None else f"{e.filename}: "
            sys.exit(printable(f"error: {place}{e.strerror[0].lower()}{e.strerror[1:]}."))
        if type(e) not in (ValueError, FloatingPointError, OSError):
            raise  # a subclass is a bug of ours or of a library, and wants its traceback
        sys.exit(printable(f"error: {e}"))


def _open_streams() -> None:
    """Give a process without standard streams empty ones, and let every text be printed in any encoding."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if (stream := getattr(sys, name)) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
        elif name == "stdout" and isinstance(stream, io.TextIOWrapper):
            is_utf8 = codecs.lookup(stream.encoding).name == "utf-8"
            stream.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")


def concerns_user(error: OSError, words: Sequence[str]) -> bool:
    """Whether an error is about a file that the command line names, or about permissions."""
    if type(error) is OSError or isinstance(error, PermissionError):
        return True
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return False
    path = Path(os.fsdecode(error.filename)).absolute()
    named = [Path(word.partition("=")[2] or word).absolute() for word in words]
    return any(path.is_relative_to(one) or one.is_relative_to(path) for one in named)


def _reader_is_gone() -> bool:
    """Whether whoever reads this process's output, such as `head`, has ended."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _end_silently() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)  # Python flushes both when it ends
    sys.exit(READER_GONE)


# --- Commands -------------------------------------------------------------------------------------


def dispatch(words: list[str]) -> None:
    """Run the command that the first one or two words name.

    Raises:
        ValueError: unknown command, with the nearest one.
    """
    match words:
        case [] | ["-h" | "--help"] | ["help"]:
            print(table())
        case ["-V" | "--version", *_]:
            print(f"upalm {__version__}")
        case ["--completion", *shell]:
            from upalm.cli.completion import script  # imports JAX, for the options of recipes

            print(script(shell))
        case ["help" | "-h" | "--help", *rest]:
            dispatch([*rest, "--help"])
        case _:
            name, rest = split(words)
            if name in COMMANDS:
                parse(name, rest)()
            else:
                print(table(name))


def split(words: Sequence[str]) -> tuple[str, list[str]]:
    """The name of a command or of a group of commands, and the words after it.

    Raises:
        ValueError: unknown command, with the nearest one.
    """
    first, *rest = words
    group = [name for name in COMMANDS if name.startswith(f"{first} ")]
    if group and rest and not rest[0].startswith("-"):
        if (name := f"{first} {rest[0]}") not in group:
            raise ValueError(f"no command '{name}': {suggest(name, group)}")
        return name, rest[1:]
    if not group and first not in COMMANDS:
        raise ValueError(f"no command {first!r}: {_suggest(first)}")
    return first, rest


def _suggest(word: str) -> str:
    from upalm.training import recipes

    nearest = OTHER_WORDS.get(word) or (f"run {word}" if word in recipes.names() else None)
    nearest = nearest or next((name for name in COMMANDS if name.split()[-1] == word), None)
    if nearest:
        return f"did you mean 'upalm {nearest}'?"
    known = {name.split()[0] for name in COMMANDS} | {"--help", "--version", "--completion"}
    return suggest(word, known, "`upalm --help` lists the commands.")


def parse(name: str, words: list[str]) -> Any:
    """The command of a name, with its options."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(import_module(module), attribute)
    if hasattr(command, "parse"):
        return command.parse(words)
    from upalm import arguments  # imports tyro

    return arguments.parse(command, words, f"upalm {name}")


def table(group: str = "") -> str:
    """The commands with their summaries, or those of a group."""
    names = [name for name in COMMANDS if not group or name.split()[0] == group]
    usage = f"usage: upalm {group} COMMAND [OPTIONS]" if group else "usage: upalm COMMAND [OPTIONS]"
    lines = [usage, "", *(f"  {name:13} {COMMANDS[name][1]}" for name in names), ""]
    if not group:
        lines[-1:] = ["  --version     Print the version.", "  --completion  Print a script for bash or zsh.", ""]
    return "\n".join([*lines, "`upalm COMMAND --help` lists the options of a command."])
