"""Recipe of a tiny run that eight devices divide."""

from pathlib import Path

import tyro

from upalm.data.config import DataConfig
from upalm.model.config import ModelConfig
from upalm.training.config import Scratch, TrainConfig
from upalm.training.launch import run
from upalm.training.optim import Adafactor, Schedule

TINY = TrainConfig(
    out=Path("run"),
    start=Scratch(ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=8, d_head=8, d_ff=64, seq_len=64)),
    data=DataConfig(tyro.MISSING, seq_len=64, batch_size=16, joint_budget=True),
    optimizer=Adafactor(Schedule("cosine", peak=1e-2, final=1e-4)),
    n_steps=8,
    log_every=1,
    save_every=3,
    eval_every=4,
    eval_batches=1,
)
CONFIGS = {"tiny": ("Eight steps.", TINY)}

if __name__ == "__main__":
    run(tyro.extras.overridable_config_cli(CONFIGS))
