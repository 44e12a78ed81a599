"""The file of an export that says how the model was trained to fill gaps: no key of its config.json does."""

import json
from pathlib import Path

from upalm.checkpoints.lineage import CheckpointInfo
from upalm.files import parse_object

FILE = "upalm.json"


def to_bytes(info: CheckpointInfo) -> bytes:
    """Return the content of the file: what prompts depend on, and whether there were gaps in training."""
    return json.dumps({"inputs_eos": info.inputs_eos, "gaps_trained": info.gaps_trained}).encode() + b"\n"


def read(path: Path) -> CheckpointInfo:
    """Read the file.

    Raises:
        ValueError: it is damaged.
    """
    stored = parse_object(path.read_bytes(), path)
    inputs_eos, gaps_trained = stored.get("inputs_eos"), stored.get("gaps_trained")
    if not isinstance(inputs_eos, bool) or not isinstance(gaps_trained, bool | None):
        raise ValueError(f"{path} is damaged: expected inputs_eos true or false, gaps_trained true, false or null.")
    return CheckpointInfo(inputs_eos=inputs_eos, gaps_trained=gaps_trained)
