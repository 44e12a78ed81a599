"""UL2R of a small PaLM, on one GPU: what `palm_small` made, continued for 2% of its tokens.

Paper:    U-PaLM (arXiv:2210.11399) section 2, at small size.
Command:  upalm run ul2r_small small --start.checkpoint runs/palm_small --data.source data/mine
Hardware: one GPU of 16 GB (small) or 80 GB (1b).
Cost:     2% of palm_small's.
Expected: infilling costs fewer bits a byte than under the base (`upalm eval`); no figure of ours yet.
"""

from dataclasses import replace
from pathlib import Path

import tyro

from upalm.data.config import DataConfig
from upalm.training import recipes
from upalm.training.config import CheckpointConfig, Continue, TrainConfig
from upalm.training.launch import run
from upalm.training.optim import Adafactor, Schedule

SMALL = TrainConfig(
    out=Path("runs/ul2r_small"),
    start=Continue(tyro.MISSING),
    data=DataConfig(tyro.MISSING, "ul2r", seq_len=1024, batch_size=32),
    optimizer=Adafactor(Schedule("cosine", peak=1e-3, final=1e-5)),
    n_steps=2000,
    save_every=500,
    eval_every=500,
    checkpoints=CheckpointConfig(minutes=30.0),
)
ONE_B = replace(
    SMALL,
    out=Path("runs/ul2r_1b"),
    data=replace(SMALL.data, seq_len=2048, batch_size=32),
    accumulation=4,
    n_steps=6000,
)
CAUSAL = replace(SMALL, out=Path("runs/causal_small"), data=replace(SMALL.data, mixture="causal"))

CONFIGS = {
    "small": ("2000 steps x 32 rows x 1024.", SMALL),
    "1b": ("6000 steps x 32 rows x 2048.", ONE_B),
    "causal": ("The control of `small`: the same steps of plain language modelling.", CAUSAL),
}

if __name__ == "__main__":
    run(recipes.choose(CONFIGS, __doc__))
