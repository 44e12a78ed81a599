"""UL2R of PaLM 540B: 20,000 steps from its weights with U-PaLM's three denoisers and a bidirectional prefix.

Paper:    U-PaLM (arXiv:2210.11399) section 2: cosine 1e-4 to 1e-6, weights only.
Command:  upalm run ul2r_540b 540b --start.checkpoint CHECKPOINT --data.source SHARDS   (on every host)
Hardware: 512 TPU v4 chips (v4:8x8x8), the paper's: 16 data x 32 model.
Cost:     1.31B tokens, 4.3e21 FLOPs, 0.16% of pretraining. The paper: about 5 days of 512 chips, 61,000 chip-hours.
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

MODEL = PALM["540b"]  # what the checkpoint has
UL2R_540B = TrainConfig(
    out=Path("runs/ul2r_540b"),
    start=Continue(tyro.MISSING, remat="matmuls"),
    data=DataConfig(tyro.MISSING, "ul2r", seq_len=2048, batch_size=32),
    optimizer=Adafactor(Schedule("cosine", peak=1e-4, final=1e-6)),
    n_steps=20_000,
    save_every=500,
    eval_every=1000,
    checkpoints=CheckpointConfig(minutes=30.0, last=3, every=5000),
    mesh=MeshConfig(model=32),
)
CAUSAL = replace(UL2R_540B, out=Path("runs/causal_540b"), data=replace(UL2R_540B.data, mixture="causal"))

CONFIGS = {
    "540b": ("20,000 steps x 32 rows x 2048, the paper's.", UL2R_540B),
    "causal": ("The control: the same steps of plain language modelling.", CAUSAL),
}

if __name__ == "__main__":
    run(recipes.choose(CONFIGS, __doc__))
