"""Loss and memory of training with less memory per parameter, beside PaLM's Adafactor in fp32.

    python benchmarks/low_memory.py --checkpoint models/smollm2 --n-steps 40 --batch-size 2 --seq-len 256

UL2R of a checkpoint, with the same rows for each contender:

- fp32: Adafactor as the paper has it, 8 bytes of state per parameter
- factored: second moments by row and column, momentum in bf16 (`--optimizer.factored True`)
- bf16: parameters and all state rounded to bf16 stochastically; simulated in fp32, with the same numbers
- nearest: the same, rounded to the nearest; what stochastic rounding is for

Bytes are those of the state that stays between steps, plus one fp32 gradient. `upalm plan` has those of a whole step.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import upalm
from upalm.data.config import DataConfig, open_source
from upalm.model.palm import Decoder
from upalm.training.config import Continue, TrainConfig
from upalm.training.feed import Feed
from upalm.training.launch import prepare
from upalm.training.optim import Adafactor, Schedule
from upalm.training.step import TrainState, evaluate, train_step


@dataclass(frozen=True)
class Case:
    """Loss and memory of UL2R by precision of the state."""

    checkpoint: Path = upalm.PALM_TINY
    """Model to continue."""
    data: str = "stdlib"
    """Text."""
    n_steps: int = 40
    """Steps of each contender; the learning rate falls to a hundredth over them."""
    batch_size: int = 2
    """Rows per step."""
    seq_len: int = 256
    """Tokens per row."""
    peak: float = 2e-3
    """Learning rate at the start."""
    eval_batches: int = 16
    """Validation batches."""
    contenders: tuple[str, ...] = ("fp32", "factored", "bf16", "nearest")
    """Contenders that run."""
    out: Path | None = None
    """JSON Lines file for the figures."""


# --- Rounding -------------------------------------------------------------------------------------


def round_stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
    """Round fp32 values to one of the two nearest bf16 values, with probabilities that keep the mean."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint32) >> 16
    return jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)


def round_to_nearest(x: jax.Array, key: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def round_leaves(tree: Any, key: jax.Array, round_leaf: Callable[..., jax.Array]) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    rounded = [round_leaf(x, k) if x.dtype == jnp.float32 else x for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, rounded)


def in_bf16(optimizer: optax.GradientTransformation, round_leaf: Callable[..., jax.Array]):
    """Round the optimizer's state, and the parameters that its updates lead to."""

    def init(params):
        return optimizer.init(params), jnp.zeros([], jnp.int32)

    def update(updates, state, params):
        inner, step = state
        key_state, key_params = jax.random.split(jax.random.fold_in(jax.random.key(0), step))
        updates, inner = optimizer.update(updates, inner, params)
        after = round_leaves(jax.tree.map(jnp.add, params, updates), key_params, round_leaf)
        return jax.tree.map(jnp.subtract, after, params), (round_leaves(inner, key_state, round_leaf), step + 1)

    return optax.GradientTransformation(init, update)


# --- Runs -----------------------------------------------------------------------------------------


def train(args: Case, contender: str) -> dict[str, Any]:
    """Train one contender; returns its losses and its bytes per parameter."""
    adafactor = Adafactor(Schedule("cosine", peak=args.peak, final=args.peak / 100), factored=contender == "factored")
    data = DataConfig(args.data, "ul2r_eos", seq_len=args.seq_len, batch_size=args.batch_size, joint_budget=True)
    config = TrainConfig(Path(), Continue(args.checkpoint), data, adafactor, args.n_steps)
    config = replace(config, eval_batches=args.eval_batches)
    start, tokenizer = prepare(config)
    model = start.make()
    feed = Feed(config, tokenizer.symbols, *open_source(data, tokenizer), None)
    n_denoisers, optimizer = len(feed.mixture), adafactor.build(args.n_steps)
    rounding = {"bf16": round_stochastically, "nearest": round_to_nearest}.get(contender)
    if rounding is not None:
        model, optimizer = round_leaves(model, jax.random.key(1), round_to_nearest), in_bf16(optimizer, rounding)
    state, losses = TrainState(model, optimizer.init(model)), []
    before = evaluate(state.model, feed.validation(), n_denoisers)
    for _ in range(args.n_steps):
        state, metrics = train_step(state, feed.next(), optimizer=optimizer, n_denoisers=n_denoisers)
        losses.append(float(metrics.sums.nll.sum() / metrics.sums.weight.sum()))
    after = evaluate(state.model, feed.validation(), n_denoisers)
    return {
        "contender": contender,
        "validation": [before, after],
        "train, last quarter": float(np.mean(losses[-math.ceil(args.n_steps / 4) :])),
        "bytes per parameter": bytes_per_parameter(state.model, state.opt_state, in_half=rounding is not None),
        "losses": losses,
    }


def bytes_per_parameter(model: Decoder, opt_state: Any, *, in_half: bool) -> dict[str, float]:
    """Count the bytes of parameters, state and a gradient; `in_half` where fp32 arrays stand for bf16."""
    n_params = sum(x.size for x in jax.tree.leaves(model))
    scale = 0.5 if in_half else 1.0
    state = scale * sum(x.nbytes for x in jax.tree.leaves(opt_state)) / n_params
    return {"parameters": 4 * scale, "optimizer": round(state, 3), "gradients": 4.0}


def main(args: Case) -> None:
    lines = []
    for contender in args.contenders:
        lines.append(json.dumps(train(args, contender)))
        print(lines[-1], flush=True)
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
