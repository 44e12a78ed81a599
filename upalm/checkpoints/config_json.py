"""config.json of a checkpoint folder: the model's shape, and the run that trained it."""

import json
from pathlib import Path
from typing import Any

from upalm.files import is_remote

FORMAT = 1


def split_step(folder: Path) -> tuple[Path, int | None]:
    """A run folder, and which of its checkpoints: RUN/steps/500 is the one after 500 steps, RUN the newest."""
    if folder.parent.name == "steps" and folder.name.isdigit():
        return folder.parent.parent, int(folder.name)
    return folder, None


def description(folder: Path) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        ValueError: no such folder, or not a checkpoint.
    """
    folder, _ = split_step(folder)
    path = folder / "config.json"
    if not path.is_file():
        what = "holds no config.json" if folder.is_dir() else "does not exist"
        raise ValueError(f"no checkpoint at {folder}: the folder {what}.")
    try:
        found = json.loads(path.read_text())
    except ValueError as e:
        raise ValueError(f"{path} is damaged: {e}.") from e
    if found.get("format") != FORMAT:
        raise ValueError(f"{path} has format {found.get('format')}, expected {FORMAT}.")
    return found


def checkpoints_folder(folder: Path) -> str | Path:
    """Folder or bucket that holds a run's `steps`: the one in its settings, or else the run folder itself."""
    settings = description(folder).get("settings") or {}
    kept = settings.get("checkpoints", settings.get("keep", {})).get("folder", "")  # named `keep` in earlier versions
    if not kept or is_remote(kept):
        return kept or folder
    elsewhere = Path(settings.get("directory", "."), kept)
    return elsewhere if (elsewhere / "steps").is_dir() else folder
