"""config.json of a checkpoint folder: the model's shape, and the run that trained it."""

import os
from pathlib import Path
from typing import Any

from upalm.files import is_remote, parse_object

FORMAT = 1


def split_step(folder: Path) -> tuple[Path, int | None]:
    """Split RUN/steps/500 into the run folder and the steps; RUN and RUN/steps name the newest checkpoint, None.

    A link to RUN/steps/500, or `.` in it, is that checkpoint, too.
    """
    for path in (folder, Path(os.path.realpath(folder))):  # as given, too: `steps` itself may be a link
        if path.name == "steps" and (path.parent / "config.json").is_file():
            return path.parent, None
        if path.parent.name == "steps" and path.name.isdigit():
            return path.parent.parent, int(path.name)
    return folder, None


def description(folder: Path) -> dict[str, Any]:
    """Read config.json.

    Raises:
        ValueError: no such folder, or config.json is damaged or of another kind of checkpoint.
    """
    folder, _ = split_step(folder)
    path = folder / "config.json"
    if not path.is_file():
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"no checkpoint at {folder}: it is a file, expected the folder of a run or of weights.")
        what = "holds no config.json" if folder.is_dir() else "does not exist"
        raise ValueError(f"no checkpoint at {folder}: the folder {what}.")
    stored = parse_object(path.read_bytes(), path)
    if "format" not in stored:
        raise ValueError(f"{path} is not the config.json of an upalm checkpoint; `upalm import-hf` opens others.")
    if stored["format"] != FORMAT:
        raise ValueError(f"{path} has format {stored['format']}, expected {FORMAT}.")
    if missing := [name for name in ("model", "run", "tokenizer_hash") if name not in stored]:
        raise ValueError(f"{path} is damaged: it lacks {', '.join(missing)}.")
    return stored


def checkpoints_folder(folder: Path) -> str | Path:
    """Folder or bucket that holds a run's `steps`: the one in its settings, or else the run folder itself."""
    settings = description(folder).get("settings") or {}
    kept = settings.get("checkpoints", settings.get("keep", {})).get("folder", "")  # named `keep` in earlier versions
    if not kept or is_remote(kept):
        return kept or folder
    elsewhere = Path(settings.get("directory", "."), kept)
    return elsewhere if (elsewhere / "steps").is_dir() else folder
