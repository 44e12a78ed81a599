"""A tiny training run that takes a second, and what tests compare of its folder."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from upalm.checkpoints.arrays import to_arrays
from upalm.checkpoints.folder import load_model
from upalm.data.config import DataConfig
from upalm.model.config import ModelConfig
from upalm.training.config import Scratch, TrainConfig
from upalm.training.metrics import OF_THE_MACHINE, read
from upalm.training.optim import Adafactor, Schedule

MODEL = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=2, d_head=16, d_ff=64, seq_len=64)


def tiny_config(out: Path, source: str = "stdlib", **changes: Any) -> TrainConfig:
    """12 steps of 4 x 64 tokens with a checkpoint every third step."""
    settings = {"n_steps": 12, "log_every": 1, "save_every": 3, "eval_every": 6, "eval_batches": 1}
    return TrainConfig(
        out=out,
        start=Scratch(MODEL),
        data=DataConfig(source, seq_len=64, batch_size=4, joint_budget=True),
        optimizer=Adafactor(Schedule("cosine", peak=1e-2, final=1e-4)),
        **(settings | changes),
    )


def params(folder: Path) -> dict[str, np.ndarray]:
    """Parameters of a checkpoint by name."""
    return {name: np.asarray(array) for name, array in to_arrays(load_model(folder)[0]).items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Whether all arrays are equal bit for bit."""
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without the metrics that differ between equal runs."""
    return [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in read(folder / "metrics.jsonl")]


def steps_of(folder: Path) -> list[int]:
    """Steps of the whole checkpoints on disk, in order; one that broke off keeps a longer name."""
    return sorted(int(p.name) for p in (folder / "steps").iterdir() if p.name.isdigit())


def damage_checkpoint(step: Path, how: str) -> None:
    """Damage the folder of one checkpoint: truncated, flipped, missing file, undescribed or described by null."""
    files = [p for p in (step / "model").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    if how == "truncated":
        os.truncate(largest, largest.stat().st_size // 2)
    elif how == "flipped":
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    elif how == "missing file":
        largest.unlink()
    elif how == "undescribed":
        (step / "about" / "metadata").write_text("{")
    elif how == "described by null":
        (step / "about" / "metadata").write_text("null")
