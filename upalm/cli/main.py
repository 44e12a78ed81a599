"""The `upalm` command: one table of commands, and one parser for each."""

import sys
from importlib import import_module
from typing import Any

from upalm._version import __version__
from upalm.spelling import suggest

COMMANDS = {
    "run": ("upalm.cli.run:Run", "Train with a recipe, or resume a run folder."),
    "recipes": ("upalm.cli.recipes:Recipes", "List the recipes and their configs."),
    "recipes show": ("upalm.cli.recipes:Show", "Print the file of a recipe."),
    "recipes cp": ("upalm.cli.recipes:Copy", "Copy a recipe to edit it."),
    "plan": ("upalm.cli.plan:Plan", "Plan a recipe on TPUs or GPUs that need not be at hand."),
    "infill": ("upalm.cli.infer:Infill", "Fill the gaps <extra_id_0>, <extra_id_1>, ... of a text."),
    "sample": ("upalm.cli.infer:Sample", "Continue a prompt."),
    "data build": ("upalm.cli.data:Build", "Tokenise text into shards for training."),
    "data show": ("upalm.cli.data:Show", "Print rows of a mixture in colour, with statistics."),
    "data check": ("upalm.cli.data:Check", "Verify the checksum of every shard."),
    "eval": ("upalm.cli.evaluate:Eval", "Measure a checkpoint on held-out text or benchmark suites."),
    "scaling": ("upalm.cli.scaling:Scaling", "Compute how much training UL2R saves, from evaluations."),
    "import-hf": ("upalm.cli.interop:ImportHf", "Convert a Hugging Face checkpoint into one of upalm."),
    "import-palm": ("upalm.cli.interop:ImportPalm", "Convert a PaLM-rlhf-pytorch file into a checkpoint."),
    "export-hf": ("upalm.cli.interop:ExportHf", "Convert a checkpoint into one of transformers."),
    "env": ("upalm.cli.env:Env", "Print versions, platform and devices, for a bug report."),
    "cite": ("upalm.cli.cite:Cite", "Print BibTeX of upalm, U-PaLM, UL2 and PaLM."),
}
"""Each command's class and summary, the first line of its docstring. A class is imported when its command runs.

A command is a frozen dataclass: its fields are the options, `__call__` runs it. A class that passes options on to a
recipe has a class method `parse(arguments)`.
"""

COMPUTING = ("run", "infill", "sample", "eval")
"""Commands that gain from huge pages."""


_ALL = "`upalm --help` lists the commands."


def main() -> None:
    """Run the command line. A user's mistake ends in one line, Ctrl-C in status 130."""
    try:
        dispatch(sys.argv[1:])
    except KeyboardInterrupt as e:
        print(f"interrupted: {e}" if str(e) else "interrupted.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, FloatingPointError, OSError) as e:
        if type(e) not in (ValueError, FloatingPointError, OSError):
            raise  # a subclass is a bug of ours or of a library, and wants its traceback
        sys.exit(f"error: {e}")


def dispatch(arguments: list[str]) -> None:
    """Run the command that the first one or two words name.

    Raises:
        ValueError: unknown command, with the nearest one.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(table())
    elif arguments[0] in ("-V", "--version"):
        print(f"upalm {__version__}")
    else:
        name, rest = split(arguments)
        if name not in COMMANDS:
            print(table(name))
            return
        parse(name, rest)()


def split(arguments: list[str]) -> tuple[str, list[str]]:
    """The name of a command or of a group of commands, and the words after it.

    Raises:
        ValueError: unknown command, with the nearest one.
    """
    for n_words in (2, 1):
        if (name := " ".join(arguments[:n_words])) in COMMANDS:
            return name, arguments[n_words:]
    first, *rest = arguments
    groups = {name.split()[0] for name in COMMANDS}
    if first not in groups:
        raise ValueError(f"no command {first!r}: {suggest(first, groups, _ALL)}")
    if not rest or rest[0].startswith("-"):
        return first, []
    commands = [name.split()[1] for name in COMMANDS if name.startswith(f"{first} ")]
    raise ValueError(f"no command '{first} {rest[0]}': {suggest(rest[0], commands)}")


def parse(name: str, arguments: list[str]) -> Any:
    """The command of a name with its options."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(import_module(module), attribute)
    if hasattr(command, "parse"):
        return command.parse(arguments)
    from upalm import arguments as parser  # imports tyro

    return parser.parse(command, arguments, f"upalm {name}")


def table(group: str = "") -> str:
    """The commands with their summaries, or those of a group."""
    names = [name for name in COMMANDS if not group or name.split()[0] == group]
    lines = [f"  {name:13} {COMMANDS[name][1]}" for name in names]
    usage = f"usage: upalm {group or 'COMMAND'} ...   `upalm COMMAND --help` lists the options of a command"
    return "\n".join([usage, "", *lines])
