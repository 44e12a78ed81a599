"""Recipes: runnable files with named configs, found beside the package or in a checkout, never imported."""

import ast
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

from upalm.spelling import suggest

_PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """Where the recipes are: in the wheel, or at the top of a checkout."""
    shipped = _PACKAGE / "_recipes"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "recipes"


def names() -> list[str]:
    """All recipes by name."""
    return sorted(p.stem for p in folder().glob("*.py"))


def find(name: str) -> Path:
    """Path of a recipe, given its name or a `.py` file.

    Raises:
        ValueError: unknown, with the nearest names.
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
    """Copy a recipe, to edit it.

    Raises:
        ValueError: unknown recipe, or the destination exists.
    """
    target = to / f"{name}.py" if to.is_dir() else to
    if target.exists():
        raise ValueError(f"{target} exists: choose another place.")
    shutil.copy(find(name), target)
    return target


def run(name: str, arguments: list[str]) -> None:
    """Run a recipe as a program.

    Raises:
        ValueError: unknown recipe or config, with the nearest names.
    """
    path = find(name)
    known = configs(name)
    chosen = next((a for a in arguments if not a.startswith("-")), None)
    if known and not {"-h", "--help"} & set(arguments) and (not arguments or arguments[0] not in known):
        raise ValueError(f"recipe {name!r} has no config {chosen!r}: {suggest(chosen or '', known)}")
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


def configs(name: str) -> dict[str, str]:
    """Summaries of a recipe's configs; none for a recipe with settings of its own.

    They are read from the file's text where `CONFIGS` is written out, since running a recipe imports JAX.
    """
    for node in ast.parse(find(name).read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign([ast.Name("CONFIGS")], ast.Dict(keys, values)):
                try:
                    return {ast.literal_eval(k): ast.literal_eval(v.elts[0]) for k, v in zip(keys, values, strict=True)}
                except (AttributeError, ValueError):  # computed, not written out
                    break
            case ast.Assign([ast.Name("CONFIGS")]):
                break
    else:
        return {}
    return {config: summary for config, (summary, _) in runpy.run_path(str(find(name)))["CONFIGS"].items()}


def contents(name: str) -> tuple[dict[str, Any], Any]:
    """A recipe's configs, and its `MODEL`: the shape that it expects a checkpoint to have, or None.

    Raises:
        ValueError: it has no configs.
    """
    found = runpy.run_path(str(find(name)))
    if not found.get("CONFIGS"):
        raise ValueError(f"recipe {name!r} has settings of its own, no configs to plan.")
    return found["CONFIGS"], found.get("MODEL")


def config(name: str, config_name: str) -> Any:
    """A named config of a recipe."""
    return runpy.run_path(str(find(name)))["CONFIGS"][config_name][1]
