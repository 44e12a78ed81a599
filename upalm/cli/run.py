"""`upalm run` and `upalm recipes`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from upalm.training import recipes


@dataclass(frozen=True)
class Recipes:
    """List the recipes, or copy one to edit: `upalm recipes`, `upalm recipes cp palm_tiny .`."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """Nothing, or `cp NAME PLACE`."""

    def __call__(self) -> None:
        if not self.words:
            for name in recipes.names():
                print(f"{name:14} {recipes.summary(name)}")
        elif len(self.words) == 3 and self.words[0] == "cp":
            print(recipes.copy(self.words[1], Path(self.words[2])))
        else:
            raise ValueError(f"upalm recipes {' '.join(self.words)}: expected nothing, or `cp NAME PLACE`.")


@dataclass(frozen=True)
class Run:
    """Run a recipe, `upalm run NAME CONFIG [--overrides]` or `upalm run ./mine.py ...`, or `upalm run --from OUT`."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """The recipe, and what goes to it; `upalm run NAME --help` lists its settings."""

    def __call__(self) -> None:
        if not self.words:
            raise ValueError(f"upalm run needs a recipe: there are {', '.join(recipes.names())}.")
        recipes.run(self.words[0], list(self.words[1:]))


@dataclass(frozen=True)
class Again:
    """Run what a run folder says: `upalm run --from FOLDER` goes on with it, with --out it is run anew elsewhere."""

    from_: Annotated[Path, tyro.conf.arg(name="from")]
    """Folder of the run, whose config.json has all its settings."""
    out: Path | None = None
    """Another folder, to run it anew."""

    def __call__(self) -> None:
        from upalm.training.launch import again  # imports JAX

        again(self.from_, {} if self.out is None else {"out": self.out})
