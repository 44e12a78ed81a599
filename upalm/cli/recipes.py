"""`upalm recipes`, `upalm recipes show` and `upalm recipes cp`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from upalm.training import recipes

Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
"""`RECIPE`: name or file of a recipe."""


@dataclass(frozen=True)
class Recipes:
    """List the recipes and their configs.

    `upalm recipes show RECIPE` prints one, `upalm recipes cp RECIPE PLACE` copies one.
    """

    def __call__(self) -> None:
        for name in recipes.names():
            print(f"{name:14} {recipes.summary(name)}")
            for config, summary in recipes.configs(name).items():
                print(f"    {config:10} {summary}")


@dataclass(frozen=True)
class Show:
    """Print the file of a recipe."""

    recipe: Name
    """Name of a recipe."""

    def __call__(self) -> None:
        print(recipes.find(self.recipe).read_text(encoding="utf-8"), end="")


@dataclass(frozen=True)
class Copy:
    """Copy a recipe to edit it."""

    recipe: Name
    """Name of a recipe."""
    place: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PLACE")] = Path()
    """Folder, or name of the new file."""

    def __call__(self) -> None:
        print(recipes.copy(self.recipe, self.place))
