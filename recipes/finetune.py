"""Finetune a checkpoint on (inputs, targets) examples; the inputs are seen in both directions.

Paper:    PaLM (arXiv:2204.02311), finetuning: Adafactor 5e-5, batch 32, most often under 15,000 steps.
Command:  upalm data build pairs.jsonl --out data/pairs --tokenizer CHECKPOINT   (lines {"inputs": ..., "targets": ...})
          upalm run finetune constant --start.checkpoint CHECKPOINT --data.source data/pairs
Hardware: what the model needs.
Cost:     that of 15,000 x 32 rows.
Expected: depends on the task. Deviation: no dropout (PaLM finetunes with 0.1).
"""

from pathlib import Path

import tyro

from upalm.data.config import DataConfig
from upalm.training import recipes
from upalm.training.config import Continue, TrainConfig
from upalm.training.launch import run
from upalm.training.optim import Adafactor, Schedule

CONSTANT = TrainConfig(
    out=Path("runs/finetune"),
    start=Continue(tyro.MISSING),
    data=DataConfig(tyro.MISSING, seq_len=2048, batch_size=32),
    optimizer=Adafactor(Schedule("constant", peak=5e-5)),
    n_steps=15_000,
    save_every=500,
    eval_every=500,
)

CONFIGS = {"constant": ("15,000 steps at a learning rate of 5e-5.", CONSTANT)}

if __name__ == "__main__":
    run(recipes.choose(CONFIGS, __doc__))
