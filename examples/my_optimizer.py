"""An optimizer of your own: Lion (Chen et al., arXiv:2302.06675), trained for a few steps through `fit`.

python examples/my_optimizer.py
"""

import inspect
import json
import tempfile
import textwrap
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import jax
import optax

from upalm.data import DataConfig, Document, SentencePiece, encode
from upalm.model import PALM, Decoder
from upalm.training import Schedule, Scratch, TrainConfig, fit


@dataclass(frozen=True)
class Lion:
    """The sign of an interpolated momentum, with decoupled weight decay."""

    schedule: Schedule = field(default_factory=Schedule)
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.1

    @lru_cache  # noqa: B019
    def build(self, n_steps: int) -> optax.GradientTransformation:
        """Equal settings give the same object, so that runs share the compiled step."""
        return optax.lion(self.schedule.build(n_steps), self.beta1, self.beta2, weight_decay=self.weight_decay)


if __name__ == "__main__":
    text = inspect.getsource(textwrap) * 3
    tokenizer = SentencePiece.train([text], 400)
    tokens = encode(tokenizer, [Document("textwrap.py", text)])
    model = replace(PALM["tiny"], vocab_size=400, d_model=32, n_layers=2, n_heads=2, d_head=16, d_ff=64, seq_len=64)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            out=Path(folder) / "run",
            start=Scratch(model),
            data=DataConfig(mixture="ul2r", seq_len=64, batch_size=8),
            optimizer=Lion(Schedule(peak=3e-3, final=0.0)),
            n_steps=20,
            log_every=1,
        )
        fit(config, Decoder(model, key=jax.random.key(0)), tokenizer, tokens, tokens)
        rows = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
        settings = json.loads((config.out / "config.json").read_text())
    losses = [row["loss"] for row in rows if "loss" in row]
    print(f"Lion: loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    assert losses[-1] < losses[0]
    assert "Lion" in json.dumps(settings), "config.json records the optimizer with its settings"
