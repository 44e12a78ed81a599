"""Pretrain PaLM 540B as its paper did: Adafactor, 1e-2 and then 1/sqrt(step), a batch ramp, one epoch.

Paper:    PaLM (arXiv:2204.02311) sections 4 and 5.
Command:  upalm data build TEXT --out data/palm --vocab-size 256000
          upalm run palm_540b 540b --data.source data/palm --checkpoints.folder gs://BUCKET/palm_540b   (on every host)
Hardware: 6144 TPU v4 chips, two pods of 3072 (`upalm plan palm_540b 540b --topology v4:12x16x16 --slices 2`), and the
          paper's mesh: 2 replicas x 256 data x 12 model; the table has Google's 256,128 rows, which 12 divides (the
          last 128 are never used).
Cost:     2.56e24 FLOPs: 5.2M v4 chip-hours at 50% MFU (the paper reports 46.2%, and 8.4M chip-hours in all);
          arithmetic, not measured here.
Expected: the paper's own figures need its data; nothing was trained at this size here.
"""

from dataclasses import replace
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

PALM_540B = TrainConfig(
    out=Path("runs/palm_540b"),
    start=Scratch(replace(PALM["540b"], vocab_size=256_128)),
    data=DataConfig(tyro.MISSING, "causal", seq_len=2048, batch_size=512, batch_ramp=((50_000, 1024), (115_000, 2048))),
    optimizer=Adafactor(Schedule("rsqrt", peak=1e-2, warm_steps=10_000)),
    n_steps=255_000,
    save_every=500,
    eval_every=5000,
    checkpoints=CheckpointConfig(minutes=30.0, last=3, every=10_000),
    mesh=MeshConfig(replicas=2, model=12),
    spikes=SpikeConfig(threshold=1.0, remedy="rewind", rewind_steps=100, skip_batches=300),
)

CONFIGS = {"540b": ("540.35B parameters, 780B tokens; rewinds and skips batches at a loss spike.", PALM_540B)}

if __name__ == "__main__":
    run(recipes.choose(CONFIGS, __doc__))
