"""Pretrain PaLM 8B as its paper did: Adafactor, 1e-2 and then 1/sqrt(step), a batch ramp, one epoch.

Paper:    PaLM (arXiv:2204.02311) sections 4 and 5; when its batch grew is not published,
          we switch at the same share of the tokens as the 540B.
Command:  upalm data build TEXT --out data/palm --vocab-size 256000
          upalm run palm_8b 8b --data.source data/palm --checkpoints.folder gs://BUCKET/palm_8b   (on every host)
Hardware: 256 TPU v4 chips (v4:4x8x8); how many the paper used is not published.
Cost:     4.29e22 FLOPs: 87,000 v4 chip-hours at 50% MFU; arithmetic, not measured here.
Expected: the paper's own figures need its data; nothing was trained at this size here.
"""

from pathlib import Path

import tyro

from upalm.data.config import DataConfig
from upalm.distributed.sharding import MeshConfig
from upalm.model.config import PALM
from upalm.training import recipes
from upalm.training.config import CheckpointConfig, Scratch, TrainConfig
from upalm.training.launch import run
from upalm.training.optim import Adafactor, Schedule
from upalm.training.spikes import SpikeConfig

PALM_8B = TrainConfig(
    out=Path("runs/palm_8b"),
    start=Scratch(PALM["8b"]),
    data=DataConfig(tyro.MISSING, "causal", seq_len=2048, batch_size=256, batch_ramp=((99_678, 512),)),
    optimizer=Adafactor(Schedule("rsqrt", peak=1e-2, warm_steps=10_000)),
    n_steps=793_705,
    save_every=500,
    eval_every=5000,
    checkpoints=CheckpointConfig(minutes=30.0, last=3, every=10_000),
    mesh=MeshConfig(model=2),
    spikes=SpikeConfig(threshold=1.0),
)

CONFIGS = {"8b": ("8.63B parameters, 780B tokens.", PALM_8B)}

if __name__ == "__main__":
    run(recipes.choose(CONFIGS, __doc__))
