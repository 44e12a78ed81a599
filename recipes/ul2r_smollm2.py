"""Continue SmolLM2-135M, an open model that fits a laptop, with UL2R on your own text.

Paper:    U-PaLM (arXiv:2210.11399) section 2, of a Llama with 135M parameters, for gaps with text after them.
Command:  upalm import-hf SMOLLM2 --out models/smollm2
          upalm data build TEXT --out data/smollm2 --tokenizer models/smollm2
          upalm run ul2r_smollm2 cpu
          upalm infill -c runs/ul2r_smollm2 --text 'def add(a, b):<FILL>    return c'
          upalm export-hf -c runs/ul2r_smollm2 --out models/ul2r_smollm2
Hardware: 2 CPU cores and 4 GB, about 25 minutes for `cpu`; 20 steps are enough to try the path.
Expected: docs/open_checkpoints.md has every command's output.
"""

from dataclasses import replace
from pathlib import Path

from upalm.data.config import DataConfig
from upalm.training import recipes
from upalm.training.config import Continue, TrainConfig
from upalm.training.launch import run
from upalm.training.optim import Adafactor, Schedule

CPU = TrainConfig(
    out=Path("runs/ul2r_smollm2"),
    start=Continue(Path("models/smollm2")),
    data=DataConfig("data/smollm2", "ul2r_infill", seq_len=256, batch_size=8, joint_budget=True),
    optimizer=Adafactor(Schedule("cosine", peak=2e-3, final=2e-5), decay=False),
    n_steps=100,
    save_every=50,
    eval_every=50,
)
CAUSAL = replace(CPU, out=Path("runs/causal_smollm2"), data=replace(CPU.data, mixture="causal"))

CONFIGS = {
    "cpu": ("100 steps of UL2R on 8 rows of 256 tokens: 205 thousand tokens.", CPU),
    "causal": ("The control: the same steps of plain language modelling.", CAUSAL),
}

if __name__ == "__main__":
    run(recipes.choose(CONFIGS, __doc__))
