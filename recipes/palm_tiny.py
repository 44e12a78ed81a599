"""Pretrain a tiny causal PaLM on Python source that every installation has. The base model of `quickstart` is made so.

Paper:    PaLM (arXiv:2204.02311) section 5, at 1/200,000 of its size.
Command:  upalm run palm_tiny tiny
          upalm data build installed --out data/installed --vocab-size 4096
          upalm run palm_tiny base --data.source data/installed
Hardware: tiny: 2 CPU cores, about an hour. base: one GPU, minutes with `--start.model.compute-dtype bfloat16`; 2 CPU
          cores would take days.
Result:   OUT/export holds bf16 weights, tokenizer, log and manifest: what ships as upalm/assets/palm_tiny. OUT/steps
          keeps every 25th part of the run of `base`, for `upalm run scaling_open`.
Expected: validation loss, see docs/results.md.
"""

import shutil
from dataclasses import replace
from pathlib import Path

from upalm.checkpoints.arrays import from_arrays, to_arrays
from upalm.checkpoints.folder import export, load_model
from upalm.data.config import DataConfig
from upalm.data.sources import INSTALLED
from upalm.model.config import PALM
from upalm.model.palm import empty_model
from upalm.training import recipes
from upalm.training.config import CheckpointConfig, Scratch, TrainConfig
from upalm.training.launch import run
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
    optimizer=Adafactor(Schedule("cosine", peak=2e-2, final=2e-4, warmup_steps=100), decay=False),
    n_steps=16_000,
    log_every=100,
    save_every=640,
    eval_every=640,
    checkpoints=CheckpointConfig(every=640),
)

CONFIGS = {
    "tiny": ("A 1.2M-parameter PaLM on the standard library, about an hour on 2 cores.", TINY),
    "base": ("2.4M parameters, a billion tokens of installed packages: minutes on one GPU, days on 2 cores.", BASE),
}


def main(config: TrainConfig) -> None:
    folder = run(config)
    shutil.copytree(folder, folder / "export", ignore=lambda *_: ["steps", "export"], dirs_exist_ok=True)
    model, tokenizer, info = load_model(folder)
    to_share = replace(model.config, compute_dtype="float32", remat="matmuls")  # whatever suited the machine
    export(
        folder / "export",
        from_arrays(empty_model(to_share), to_arrays(model), folder),
        tokenizer,
        config.identity(),
        info,
    )
    print(f"weights to share: {folder / 'export'}")


if __name__ == "__main__":
    main(recipes.choose(CONFIGS, __doc__))
