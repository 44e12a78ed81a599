"""Pretrain a tiny causal PaLM on Python source that every installation has. The base model of `quickstart` is made so.

Paper:    PaLM (arXiv:2204.02311) section 5, at 1/200,000 of its size.
Command:  upalm data build installed --out data/installed --vocab-size 4096
          upalm run palm_tiny base --data.source data/installed --start.model.compute-dtype bfloat16
          upalm run palm_tiny tiny
Hardware: base: one GPU, 5 minutes in bf16; by arithmetic half a day on 2 CPU cores in
          float32. tiny: 2 CPU cores, about an hour.
Result:   OUT/export holds bf16 weights, tokenizer, log and manifest. OUT/steps keeps every 25th part of the run of
          `base`, for `upalm run scaling_open`.
Shipped:  upalm/assets/palm_tiny is step 3588 of `base` on one H200 (235M tokens, 13 passes). The run was cut there
          when the machine's time ended, and the validation loss had all but stopped falling; OUT/steps/3600 is the
          nearest that the command keeps. Peak rates of 1e-2, 2e-2 and 4e-2 had been tried for 300 steps: validation
          losses 4.14, 3.76 and 3.44.
Expected: validation loss, see docs/results.md.
"""

from dataclasses import replace
from pathlib import Path

from upalm.data.config import DataConfig
from upalm.data.sources import INSTALLED
from upalm.model.config import PALM
from upalm.training import recipes
from upalm.training.config import CheckpointConfig, Scratch, TrainConfig
from upalm.training.launch import run_and_export
from upalm.training.optim import Adafactor, Schedule

TINY = TrainConfig(
    out=Path("runs/palm_tiny"),
    start=Scratch(PALM["tiny"]),
    data=DataConfig(mixture="causal", seq_len=256, batch_size=8),
    optimizer=Adafactor(Schedule("cosine", peak=3e-2, final=3e-4), decay=False),
    n_steps=8000,
    save_every=500,
    eval_every=250,
)

# two of them, and their tokenizers, take less than 10 MB in bf16
BASE_MODEL = replace(
    PALM["tiny"], d_model=144, n_layers=6, n_heads=3, d_head=48, d_ff=576, vocab_size=4096, seq_len=512
)
BASE = replace(
    TINY,
    out=Path("runs/palm_base"),
    start=Scratch(BASE_MODEL),
    data=DataConfig(INSTALLED, "causal", seq_len=512, batch_size=128),
    optimizer=Adafactor(Schedule("cosine", peak=4e-2, final=4e-4, warmup_steps=100), decay=False),
    n_steps=4500,
    log_every=28,
    save_every=180,
    eval_every=180,
    checkpoints=CheckpointConfig(every=180),
)

CONFIGS = {
    "tiny": ("A 1.2M-parameter PaLM on the standard library, about an hour on 2 cores.", TINY),
    "base": ("2.4M parameters, 295M tokens of installed packages: minutes on one GPU, half a day on 2 cores.", BASE),
}


if __name__ == "__main__":
    run_and_export(recipes.choose(CONFIGS, __doc__))
