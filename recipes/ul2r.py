"""Continue any checkpoint with UL2R on your own text: an imported open model, or one of your own.

Paper:    U-PaLM (arXiv:2210.11399) section 2: the checkpoint's weights, fresh optimizer, cosine to a hundredth.
Command:  upalm import-hf SOURCE --out models/base
          upalm data build TEXT --out data/mine --tokenizer models/base
          upalm run ul2r --checkpoint models/base --data data/mine --out runs/ul2r
          upalm eval --checkpoint runs/ul2r --data TEXT
          upalm export-hf --checkpoint runs/ul2r --out models/ul2r
Hardware: what the model needs; docs/open_checkpoints.md walks through it.
Expected: infilling costs fewer bits a byte than under the import, and format_ok rises from 0.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from upalm.data.config import DataConfig
from upalm.training import recipes
from upalm.training.config import Continue, TrainConfig
from upalm.training.launch import run
from upalm.training.optim import Adafactor, Schedule


@dataclass(frozen=True)
class Ul2r:
    """UL2R of a checkpoint."""

    checkpoint: Annotated[Path, tyro.conf.arg(aliases=("-c",))]
    """Checkpoint to start from; its weights and tokenizer are taken, its optimizer state is not."""
    data: str
    """Folder made by `upalm data build`, or text."""
    out: Path = Path("runs/ul2r")
    """Folder of the run. Run again with the same settings to resume."""
    n_steps: int = 20_000
    """Optimizer steps; the paper's is 20,000, about 0.1% of pretraining."""
    batch_size: int = 32
    """Rows a batch (the paper's for 540B)."""
    seq_len: int = 2048
    """Tokens a row: half for inputs, half for targets."""
    peak: float = 1e-4
    """Learning rate, relative to the RMS of each parameter; it falls to a hundredth over the run."""
    mixture: str = "ul2r"
    """Mixture of denoisers; `causal` is the control."""
    accumulation: int = 1
    """Microbatches that a batch is split into, to save memory."""
    save_every: int = 500
    """Steps between checkpoints."""
    seed: int = 0
    """Decides data order and noise."""

    def config(self) -> TrainConfig:
        """The run."""
        return TrainConfig(
            out=self.out,
            start=Continue(self.checkpoint),
            data=DataConfig(self.data, self.mixture, seq_len=self.seq_len, batch_size=self.batch_size),
            optimizer=Adafactor(Schedule("cosine", peak=self.peak, final=self.peak / 100)),
            n_steps=self.n_steps,
            accumulation=self.accumulation,
            seed=self.seed,
            save_every=self.save_every,
            eval_every=self.save_every,
        )


if __name__ == "__main__":
    run(recipes.parse(Ul2r, __doc__).config())
