"""Recipes: runnable files with named configs, beside the package or in a checkout, never imported."""

import ast
import runpy
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from upalm import arguments
from upalm.spelling import suggest

T = TypeVar("T")
_PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """Folder of the recipes: in the wheel, or at the top of a checkout."""
    shipped = _PACKAGE / "_recipes"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "recipes"


def names() -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(p.stem for p in folder().glob("*.py"))


def find(name: str) -> Path:
    """Path of a recipe, from its name or from a `.py` file.

    Raises:
        ValueError: unknown recipe, with the nearest name.
    """
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise ValueError(f"no recipe file {name}.")
        return Path(name)
    if name not in names():
        raise ValueError(f"no recipe {name!r}: {suggest(name, names())}")
    return folder() / f"{name}.py"


def summary(name: str) -> str:
    """First line of a recipe's docstring."""
    return find(name).read_text(encoding="utf-8").split('"""')[1].split("\n")[0]


def copy(name: str, to: Path) -> Path:
    """Copy a recipe to a folder or file.

    Raises:
        ValueError: unknown recipe, or the destination exists.
    """
    source = find(name)
    target = to / source.name if to.is_dir() else to
    if target.exists():
        raise ValueError(f"{target} exists: choose another place.")
    shutil.copy(source, target)
    return target


def run(name: str, words: list[str]) -> None:
    """Run a recipe as a program.

    Raises:
        ValueError: unknown recipe or config, with the nearest names.
    """
    path = find(name)
    if known := configs(name):
        default = next(iter(known)) if "def config_here(" in path.read_text(encoding="utf-8") else ""
        split(known, words, f"upalm run {name}", lambda: default)
    sys.argv = [str(path), *words]
    runpy.run_path(str(path), run_name="__main__")


def choose(
    configs: Mapping[str, tuple[str, T]], description: str | None, config_here: Callable[[], str] = lambda: ""
) -> T:
    """Parse the command line of a recipe: the name of a config, and options that change it.

    The name may be left out if there is one config, or if the recipe knows which suits this machine.

    Args:
        configs: summary and config by name.
        description: the recipe's `__doc__`, None under `python -OO`.
        config_here: the recipe's function of this name, which returns the config of this machine; "" for none.

    Raises:
        SystemExit: status 0 after help, 2 after a mistake.
    """
    program, words, description = _program(), sys.argv[1:], (description or "").strip()
    try:
        summaries = {name: summary for name, (summary, _) in configs.items()}
        name, words = split(summaries, words, program, config_here)
    except ValueError as e:
        arguments.refuse(str(e))
    if not name:
        lines = [description, "", f"usage: {program} CONFIG [OPTIONS]", ""]
        print("\n".join([*lines, *(f"  {name:10} {summary}" for name, (summary, _) in configs.items())]))
        sys.exit(0)
    summary, config = configs[name]
    heading = f"{description}\n\n{name}: {summary}"
    return arguments.parse(type(config), words, f"{program} {name}", heading=heading, default=config)


def parse(settings: type[T], description: str | None) -> T:
    """Parse the command line of a recipe whose settings are a dataclass of its own.

    Raises:
        SystemExit: status 0 after help, 2 after a mistake.
    """
    return arguments.parse(settings, sys.argv[1:], _program(), heading=description or "")


def _program() -> str:
    """Command that runs the recipe of this process."""
    path = Path(sys.argv[0])
    return f"upalm run {path.stem if path.parent == folder() else path}"


def split(
    configs: Mapping[str, str], words: list[str], program: str, default: Callable[[], str] = lambda: ""
) -> tuple[str, list[str]]:
    """Split a command line into the name of a config ("" for help of all) and the words after it.

    Args:
        configs: summaries by name.
        words: the command line after the recipe's name.
        program: the command, for errors.
        default: returns the config if none is named; "" if one must be.

    Raises:
        ValueError: unknown config, with the nearest name.
    """
    if words and words[0] in configs:
        return words[0], words[1:]
    if len(configs) == 1 and (not words or words[0].startswith("-")):
        return next(iter(configs)), words
    if {"-h", "--help"} & set(words[:1]):
        return "", words
    if not words or words[0].startswith("-"):
        if name := default():
            return name, words
        raise ValueError(f"{program} needs a config before its options: choose one of {', '.join(configs)}.")
    raise ValueError(f"{program} has no config {words[0]!r}: {suggest(words[0], configs)}")


def configs(name: str) -> dict[str, str]:
    """Summaries of a recipe's configs; none for a recipe with settings of its own.

    They are read from the file's text where `CONFIGS` is written out, since running a recipe imports JAX.

    Raises:
        ValueError: the file is no Python, or its `CONFIGS` no dict.
    """
    path = find(name)
    try:
        text = path.read_text(encoding="utf-8")
        body = ast.parse(text).body
    except (SyntaxError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is no Python: {e}.") from e
    for node in body:
        match node:
            case ast.Assign([ast.Name("CONFIGS")], ast.Dict(keys, values)):
                found = {}
                for pair in zip(keys, values, strict=True):
                    match pair:
                        case ast.Constant(config), ast.Tuple([ast.Constant(summary), _]):
                            found[config] = summary
                if len(found) == len(keys):
                    return found
    computed = _load(name).get("CONFIGS", {}) if "CONFIGS" in text else {}
    if not isinstance(computed, dict):
        raise ValueError(f"{path}: CONFIGS is {computed!r}, expected a dict of (summary, config) by name.")
    return {config: summary for config, (summary, _) in computed.items()}


def contents(name: str) -> tuple[dict[str, Any], Any]:
    """A recipe's configs, and its `MODEL`: the shape that it expects a checkpoint to have, or None.

    Raises:
        ValueError: it has no configs.
    """
    found = _load(name)
    if not found.get("CONFIGS"):
        raise ValueError(f"recipe {name!r} has settings of its own, no configs to plan.")
    return found["CONFIGS"], found.get("MODEL")


def config(name: str, config_name: str) -> Any:
    """A named config of a recipe."""
    return _load(name)["CONFIGS"][config_name][1]


def _load(name: str) -> dict[str, Any]:
    """Names that a recipe defines; the sources of its classes can be found, which help and errors quote."""
    found = runpy.run_path(str(find(name)), run_name=_MODULE)
    sys.modules[_MODULE] = module = ModuleType(_MODULE)
    vars(module).update(found)
    return found


_MODULE = "upalm_recipe"
"""Module of the classes that a recipe defines."""
