"""UL2R of PaLM 62B: 20,000 steps from its weights with U-PaLM's three denoisers and a bidirectional prefix.

Paper:    U-PaLM (arXiv:2210.11399) section 2: cosine 1e-4 to 1e-6, weights only;
          the batch for this size is not published, 128 is the largest it names.
Command:  upalm run ul2r_62b 62b --start.checkpoint CHECKPOINT --data.source SHARDS   (on every host)
Hardware: 64 TPU v4 chips (v4:4x4x4), the paper's.
Cost:     5.2B tokens, 2.0e21 FLOPs: 4,100 v4 chip-hours at 50% MFU; arithmetic, not measured.
Expected: no PaLM weights are public, so nothing was trained at this size here; at small size, docs/results.md.
"""

from dataclasses import replace
from pathlib import Path

import tyro

from upalm.data.config import DataConfig
from upalm.distributed.sharding import MeshConfig
from upalm.model.config import PALM
from upalm.training import recipes
from upalm.training.config import CheckpointConfig, Continue, TrainConfig
from upalm.training.launch import run
from upalm.training.optim import Adafactor, Schedule

MODEL = PALM["62b"]  # what the checkpoint has
UL2R_62B = TrainConfig(
    out=Path("runs/ul2r_62b"),
    start=Continue(tyro.MISSING, remat="matmuls"),
    data=DataConfig(tyro.MISSING, "ul2r", seq_len=2048, batch_size=128),
    optimizer=Adafactor(Schedule("cosine", peak=1e-4, final=1e-6)),
    n_steps=20_000,
    save_every=500,
    eval_every=1000,
    checkpoints=CheckpointConfig(minutes=30.0, last=3, every=5000),
    mesh=MeshConfig(model=8),
    accumulation=8,  # so that the outputs of all products fit, and none is repeated
)
CAUSAL = replace(UL2R_62B, out=Path("runs/causal_62b"), data=replace(UL2R_62B.data, mixture="causal"))

CONFIGS = {
    "62b": ("20,000 steps x 128 rows x 2048.", UL2R_62B),
    "causal": ("The control: the same steps of plain language modelling.", CAUSAL),
}

if __name__ == "__main__":
    run(recipes.choose(CONFIGS, __doc__))
