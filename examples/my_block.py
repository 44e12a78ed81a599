"""A model variant: attention, then feed-forward, as in GPT and LLaMA; PaLM computes them in parallel.

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
from upalm.model import PALM, Block, Decoder, attend
from upalm.model.layers import matmul, normalise, rotate, unit_scale
from upalm.training import AdamW, Schedule, TrainState, train_step
from upalm.training.step import microbatched


class SerialBlock(Block):
    """`y = x + Attention(norm(x))`, then `y + SwiGLU(mlp_norm(y))`."""

    AXES: ClassVar = Block.AXES | {"mlp_norm": ("embed",)}  # how a mesh splits the new parameter

    mlp_norm: Float[Array, " D"] | None

    def __init__(self, config, *, key):
        super().__init__(config, key=key)
        self.mlp_norm = unit_scale(config, config.d_model)

    def __call__(self, x_BTD, tables, visible, cache=None, slot=0):
        kv = self.keys_values(x_BTD, tables)
        if cache is not None:
            kv = cache.write(kv, slot)
        q_BTNH = rotate(matmul(normalise(x_BTD, self.norm, self.config), self.wq), tables)
        y_BTD = x_BTD + matmul(attend(q_BTNH, kv.k, kv.v, visible), self.wo, n_in=2)
        h_BTD = normalise(y_BTD, self.mlp_norm, self.config)
        gated_BTF = jax.nn.silu(matmul(h_BTD, self.w_gate)) * matmul(h_BTD, self.w_up)
        return y_BTD + matmul(gated_BTF, self.w_down), kv


def serial(config, *, key) -> Decoder:
    """A Decoder whose stacked blocks are serial."""
    blocks = eqx.filter_vmap(lambda k: SerialBlock(config, key=k))(jax.random.split(key, config.n_layers))
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
    for name, build in {"parallel": Decoder, "serial": serial}.items():
        model = build(config, key=jax.random.key(0))
        n_params = sum(x.size for x in jax.tree.leaves(model))
        losses = train(model, loader, 20)
        print(f"{name:8} {n_params:,} parameters, loss {losses[0]:.2f} -> {losses[-1]:.2f}")
        assert losses[-1] < losses[0] / 2
        n_norm = config.n_layers * config.d_model  # ModelConfig.n_params counts matrices, which the variant shares
        assert n_params == config.n_params + n_norm * (2 if name == "serial" else 1)
    print("upalm", upalm.__version__)
