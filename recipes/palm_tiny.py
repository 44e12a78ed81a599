"""Pretrain a tiny causal PaLM on Python's own standard library. The base model of `quickstart` is made by this.

Paper:    PaLM (arXiv:2204.02311) section 5, at 1/200,000 of its size.
Command:  upalm run palm_tiny tiny
Hardware: 2 CPU cores, about an hour.
Result:   OUT/export holds bf16 weights, tokenizer, log and manifest: what ships as upalm/assets/palm_tiny.
Expected: validation loss, see docs/results.md.
"""

import shutil
from pathlib import Path

from upalm.checkpoints.folder import export, load_model
from upalm.data.config import DataConfig
from upalm.model.config import PALM
from upalm.training import recipes
from upalm.training.config import Scratch, TrainConfig
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

CONFIGS = {"tiny": ("A 1.2M-parameter PaLM on the standard library, about an hour on 2 cores.", TINY)}

if __name__ == "__main__":
    chosen = recipes.choose(CONFIGS, __doc__)
    folder = run(chosen)
    shutil.copytree(folder, folder / "export", ignore=lambda *_: ["steps", "export"], dirs_exist_ok=True)
    model, tokenizer, info = load_model(folder)
    export(folder / "export", model, tokenizer, chosen.identity(), info)
    print(f"weights to share: {folder / 'export'}")
