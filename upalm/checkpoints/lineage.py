"""Training history of a checkpoint: mixture, tokens and seed of every run that led to it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from upalm.checkpoints.config_json import checkpoints_folder, description, split_step
from upalm.data.config import DataConfig


class Stage(NamedTuple):
    """One run, up to the checkpoint that the next run started from."""

    mixture: str
    n_tokens: int
    seed: int


class CheckpointInfo(NamedTuple):
    """Training history of a checkpoint: its mixtures, and whether it learnt to fill gaps."""

    mixture: str | None = None
    """Mixture of the last run; None if unknown, as for an import."""
    inputs_eos: bool = False
    """Inputs with gaps ended with EOS in training (`ul2r.Denoiser.inputs_eos`), so prompts do too."""
    gaps_trained: bool | None = None
    """Whether training had gaps at all; None if unknown."""
    stages: tuple[Stage, ...] | None = None
    """Every run from scratch to this checkpoint; None if one is unknown."""


def read_info(folder: Path) -> CheckpointInfo:
    """Read what a checkpoint was trained on. Older folders say less.

    Raises:
        ValueError: no such folder, or not a checkpoint.
    """
    stored = description(folder)
    mixture, led = stored["run"].get("data", {}).get("mixture"), stages(folder)
    gaps_trained = stored.get("gaps_trained", False if mixture == "causal" else None)
    return CheckpointInfo(mixture, stored.get("inputs_eos", False), gaps_trained, tuple(led) if led else None)


def stages(folder: Path) -> list[Stage] | None:
    """List the runs from scratch to a checkpoint; None if one is unknown, as for an import or a folder that is gone."""
    try:
        stored = description(folder)
    except ValueError:
        return None
    run = stored["run"]
    if "n_steps" not in run or "start" not in run:
        return None
    before = _before(stored, run["start"])
    if before is None:
        return None
    data = run["data"]
    ramp = tuple((first, rows) for first, rows in data.get("batch_ramp", ()))
    config = DataConfig(batch_size=data["batch_size"], seq_len=data["seq_len"], batch_ramp=ramp)
    n_tokens = config.rows_before(count_steps(folder, run["n_steps"])) * data["seq_len"]
    return [*before, Stage(data["mixture"], n_tokens, run["seed"])]


def _before(stored: Mapping[str, Any], start: Mapping[str, Any]) -> list[Stage] | None:
    """List the runs before this one: as its config.json says, or else from the folder that it started from."""
    if "checkpoint" not in start:
        return []
    if stored.get("stages_before") is not None:
        return [Stage(*stage) for stage in stored["stages_before"]]
    return stages(Path(start["checkpoint"]))


def count_steps(folder: Path, n_steps: int) -> int:
    """Return the steps that a checkpoint has made: those of its name or of the newest; `n_steps` of weights alone."""
    run, step = split_step(folder)
    if step is not None:
        return step
    steps = epath.Path(checkpoints_folder(run)) / "steps"
    return max((int(p.name) for p in steps.glob("*") if p.name.isdigit()), default=n_steps)
