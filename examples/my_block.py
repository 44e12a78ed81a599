"""A model variant: a learnt scale of what each block adds to the residual stream (LayerScale, arXiv:2103.17239).

    python examples/my_block.py

Dims: B batch rows, T positions, D d_model, L layers.
"""

from dataclasses import replace
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import upalm
from upalm import ul2r
from upalm.data import DataConfig, Loader, Tokens
from upalm.model import PALM, Block, Decoder
from upalm.training import AdamW, Schedule, TrainState, train_step
from upalm.training.step import microbatched


class ScaledBlock(Block):
    """`x + layer_scale * (Attention(norm(x)) + SwiGLU(norm(x)))`."""

    AXES: ClassVar = Block.AXES | {"layer_scale": ("embed",)}  # how a mesh splits the new parameter

    layer_scale: Float[Array, " D"]

    def __init__(self, config, *, key):
        super().__init__(config, key=key)
        self.layer_scale = jnp.full(config.d_model, 0.5)

    def __call__(self, x_BTD, tables, visible, cache=None, slot=0):
        y_BTD, kv = super().__call__(x_BTD, tables, visible, cache, slot)
        return x_BTD + self.layer_scale.astype(x_BTD.dtype)[None, None] * (y_BTD - x_BTD), kv


def scaled(config, *, key) -> Decoder:
    """A Decoder whose stacked blocks are scaled."""
    blocks = eqx.filter_vmap(lambda k: ScaledBlock(config, key=k))(jax.random.split(key, config.n_layers))
    return eqx.tree_at(lambda model: model.blocks, Decoder(config, key=key), blocks)


def train(model: Decoder, loader: Loader, n_steps: int) -> list[float]:
    optimizer = AdamW(Schedule(kind="constant", peak=3e-3)).build(n_steps)
    state, losses = TrainState(model, optimizer.init(model)), []
    for step in range(n_steps):
        batches = jax.tree.map(jnp.asarray, microbatched(loader.batch(step), 1))
        state, metrics = train_step(state, batches, optimizer=optimizer, n_denoisers=len(loader.segmenters))
        losses.append(float(metrics.sums.nll.sum() / metrics.sums.weight.sum()))
    return losses


if __name__ == "__main__":
    config = replace(PALM["tiny"], vocab_size=64, d_model=32, n_layers=2, n_heads=2, d_head=16, d_ff=64, seq_len=64)
    ids = np.random.default_rng(0).integers(10, 20, (40, 1)) + np.arange(60) % 7  # documents that count to seven
    symbols = ul2r.Symbols(tuple(range(63, 40, -1)), {"s2s": (7,), "nlu": (8,), "nlg": (9,)})
    tokens, data = Tokens.from_documents(ids.tolist()), DataConfig(mixture="causal", seq_len=64, batch_size=8)
    loader = Loader(tokens, data, symbols, seed=0)
    for name, build in {"PaLM": Decoder, "scaled": scaled}.items():
        model = build(config, key=jax.random.key(0))
        n_params = sum(x.size for x in jax.tree.leaves(model))
        losses = train(model, loader, 20)
        print(f"{name:8} {n_params:,} parameters, loss {losses[0]:.2f} -> {losses[-1]:.2f}")
        assert losses[-1] < losses[0] / 2
        n_scales = config.n_layers * config.d_model  # ModelConfig.n_params counts matrices, which the variant shares
        assert n_params == config.n_params + n_scales * (2 if name == "scaled" else 1)
    print("upalm", upalm.__version__)
