"""`upalm run`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from upalm import arguments
from upalm.training import recipes


@dataclass(frozen=True)
class Run:
    """Train with a recipe, or resume a run folder.

    `upalm run RECIPE CONFIG --option value ...` trains; `upalm run RECIPE CONFIG --help` lists the recipe's options.
    `upalm recipes` lists the recipes; a file such as ./mine.py is one, too.
    `upalm run --from FOLDER` resumes a run by the settings in its folder; with --out it repeats the run elsewhere.
    Several processes that began with --processes.* resume by their own commands instead.
    """

    recipe: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RECIPE [CONFIG] ...]")] = ()
    """Name or file of a recipe, one of its configs, and the recipe's options."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from", metavar="FOLDER")] = None
    """Folder of a run, whose config.json holds all its settings."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Another folder for a run given by --from, which is repeated there."""

    @classmethod
    def parse(cls, words: Sequence[str]) -> "Run":
        """Pass all words after a recipe's name on to the recipe."""
        if words and not words[0].startswith("-"):
            return cls(tuple(words))
        return arguments.parse(cls, words, "upalm run")

    def __call__(self) -> None:
        words = " ".join(self.recipe)
        if self.recipe and self.from_ is not None:
            raise ValueError(f"--from {self.from_} and the recipe {words!r} are two runs: give one of them.")
        if self.recipe and self.out is not None:
            raise ValueError(f"options come after RECIPE CONFIG: upalm run {words} --out {self.out}.")
        if self.out is not None and self.from_ is None:
            raise ValueError(f"--out {self.out} is another folder for the run that --from FOLDER names: give --from.")
        if self.from_ is not None:
            from upalm.training.launch import rerun  # imports JAX

            rerun(self.from_, {} if self.out is None else {"out": self.out})
        elif self.recipe:
            recipes.run(self.recipe[0], list(self.recipe[1:]))
        else:
            raise ValueError(f"expected a recipe or --from FOLDER; the recipes are {', '.join(recipes.names())}.")
