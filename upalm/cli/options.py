"""Options that several commands share, under one name."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

Checkpoint = Annotated[Path, tyro.conf.arg(aliases=("-c",), metavar="FOLDER")]
"""`--checkpoint FOLDER`, `-c FOLDER`: a run, one of its steps, an import or an export."""

Data = Annotated[str, tyro.conf.arg(metavar="DATA")]
"""`--data DATA`: text, or a folder that `upalm data build` wrote."""

Mode = Literal["auto", "none", "s2s", "nlu", "nlg"]
"""`--mode`: `upalm.inference.config.Mode`, which would import JAX, or the command's choice."""

Attention = Literal["prefix", "causal"]
"""`--attention`: `upalm.inference.config.Attention`, which would import JAX."""

Out = Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
"""`--out FOLDER`: where the command writes."""

TEXT_OPTIONS = ("--include", "--skip-undecodable")
"""Options of commands that read text, for messages that suggest them."""


def check_file(option: str, path: Path | None) -> None:
    """Refuse a place for a file, if one is given, where none can be written.

    Raises:
        ValueError: it is a folder, or lies in none.
    """
    if path is not None and not path.absolute().parent.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {path.parent}.")
    if path is not None and path.is_dir():
        raise ValueError(f"{option} {path} is a folder, expected a file.")
