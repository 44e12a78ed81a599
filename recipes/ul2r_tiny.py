"""Continue the shipped tiny PaLM with UL2R for longer than the quickstart does, or with the causal control.

Paper:    U-PaLM (arXiv:2210.11399) section 2.4, at tiny size.
Command:  upalm run ul2r_tiny ul2r
Hardware: 2 CPU cores, about 15 minutes.
Expected: docs/results.md. Measure with: upalm run quickstart --checkpoint runs/ul2r_tiny --n-steps 1
"""

from dataclasses import replace
from pathlib import Path

import jax

import upalm
from upalm.checkpoints.folder import export_run
from upalm.data.config import DataConfig
from upalm.training import recipes
from upalm.training.config import Continue, TrainConfig
from upalm.training.launch import run
from upalm.training.optim import Adafactor, Schedule

UL2R = TrainConfig(
    out=Path("runs/ul2r_tiny"),
    start=Continue(upalm.PALM_TINY),
    data=DataConfig(mixture="ul2r_eos", seq_len=256, batch_size=8, joint_budget=True),
    optimizer=Adafactor(Schedule("cosine", peak=1e-2, final=1e-4), decay=False),
    n_steps=2000,
)
CAUSAL = replace(UL2R, out=Path("runs/causal_tiny"), data=replace(UL2R.data, mixture="causal"))

CONFIGS = {
    "ul2r": ("2000 steps of UL2R, about 15 minutes on 2 cores.", UL2R),
    "causal": ("The control: the same steps of plain language modelling.", CAUSAL),
}


def main(config: TrainConfig) -> None:
    folder = run(config)
    if jax.process_count() == 1:
        export_run(folder, folder / "export")
        print(f"weights to share: {folder / 'export'}")


if __name__ == "__main__":
    main(recipes.choose(CONFIGS, __doc__))
