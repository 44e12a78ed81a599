"""Continue the shipped tiny PaLM with UL2R for longer than the quickstart does, or with the causal control.

`ul2r` made the model that ships as upalm/assets/upalm_tiny.

Paper:    U-PaLM (arXiv:2210.11399) section 2.4, at tiny size.
Command:  upalm run ul2r_tiny ul2r
Hardware: 2 CPU cores, 6 to 20 minutes.
Result:   OUT/export holds bf16 weights, tokenizer, log and manifest.
Expected: docs/results.md. Measure with: python benchmarks/curve.py --run runs/ul2r_tiny --json curve.json
"""

from dataclasses import replace
from pathlib import Path

import upalm
from upalm.data.config import DataConfig
from upalm.data.sources import INSTALLED
from upalm.training import recipes
from upalm.training.config import Continue, TrainConfig
from upalm.training.launch import run_and_export
from upalm.training.optim import Adafactor, Schedule

UL2R = TrainConfig(
    out=Path("runs/ul2r_tiny"),
    start=Continue(upalm.PALM_TINY),
    data=DataConfig(INSTALLED, "ul2r_gaps", seq_len=256, batch_size=16, joint_budget=True),
    optimizer=Adafactor(Schedule("cosine", peak=7e-3, final=7e-5), decay=False),
    n_steps=1000,
    save_every=125,
    eval_every=250,
)
CAUSAL = replace(UL2R, out=Path("runs/causal_tiny"), data=replace(UL2R.data, mixture="causal"))

CONFIGS = {
    "ul2r": ("1000 steps of UL2R, 6 to 20 minutes on 2 cores: the model that ships.", UL2R),
    "causal": ("The control: the same steps of plain language modelling.", CAUSAL),
}


if __name__ == "__main__":
    run_and_export(recipes.choose(CONFIGS, __doc__))
