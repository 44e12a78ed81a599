"""Options that several commands share, under one name."""

from pathlib import Path
from typing import Annotated, TypeVar

import tyro

Value = TypeVar("Value")

Checkpoint = Annotated[Path, tyro.conf.arg(aliases=("-c",), metavar="FOLDER")]
"""`--checkpoint FOLDER`, `-c FOLDER`: a run, one of its steps, an import or an export."""

Data = Annotated[str, tyro.conf.arg(metavar="DATA")]
"""`--data DATA`: text, or a folder that `upalm data build` wrote."""

Out = Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
"""`--out FOLDER`: where the command writes."""
