"""Pretrain a small PaLM on your text, on one GPU: 0.11B or 1.02B parameters.

Paper:    PaLM (arXiv:2204.02311) section 5, at 1/5000 and 1/500 of its size; cosine in place of 1/sqrt(step).
Command:  upalm data build TEXT --out data/mine --vocab-size 32000
          upalm run palm_small small --data.source data/mine
Hardware: one GPU of 16 GB (small) or 80 GB (1b).
Cost:     2.5e18 FLOPs (small, 3.3B tokens) and 1.5e20 (1b, 21B tokens): 2 and 102 hours of an H100 at 40% MFU;
          arithmetic, not measured.
Expected: a falling validation loss; no figure of ours yet.
"""

from dataclasses import replace
from pathlib import Path

import tyro

from upalm.data.config import DataConfig
from upalm.model.config import PALM
from upalm.training import recipes
from upalm.training.config import CheckpointConfig, Scratch, TrainConfig
from upalm.training.launch import run
from upalm.training.optim import Adafactor, Schedule

SMALL = TrainConfig(
    out=Path("runs/palm_small"),
    start=Scratch(replace(PALM["small"], compute_dtype="bfloat16")),
    data=DataConfig(tyro.MISSING, "causal", seq_len=1024, batch_size=64),
    optimizer=Adafactor(Schedule("cosine", peak=1e-2, final=1e-4, warmup_steps=1000)),
    n_steps=50_000,
    save_every=1000,
    eval_every=1000,
    checkpoints=CheckpointConfig(minutes=30.0, last=2, every=10_000),
)
ONE_B = replace(
    SMALL,
    out=Path("runs/palm_1b"),
    start=Scratch(PALM["1b"]),
    data=replace(SMALL.data, seq_len=2048, batch_size=128),
    accumulation=16,
    n_steps=80_000,
)

CONFIGS = {
    "small": ("0.11B parameters, 3.3B tokens.", SMALL),
    "1b": ("1.02B parameters, 21B tokens.", ONE_B),
}

if __name__ == "__main__":
    run(recipes.choose(CONFIGS, __doc__))
