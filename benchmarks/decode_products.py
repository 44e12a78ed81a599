"""The weight products of one decoding step by themselves, at the 34M shape of `generate_speed.py --config small`.

python benchmarks/decode_products.py --rows 1 16

`upalm` multiplies as `decode` does. `two per layer` has one product for all that reads the norm, one for both outputs.
`torch` (where it is installed) has linear layers. They take turns; medians and range. XLA_FLAGS count,
and `taskset -c 0` before the command gives one core's.
"""

import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax

from upalm.model.layers import TransposedWeight

D, F, V, L, HEADS, H = 512, 2048, 8192, 8, 512, 64
SEPARATE = ((HEADS, D), (H, D), (H, D), (F, D), (F, D), (D, HEADS), (D, F))  # outputs, inputs
TWO = ((HEADS + 2 * H + 2 * F, D), (D, HEADS + F))
STEPS = 20


def of_xla(layer: tuple[tuple[int, int], ...], n_rows: int) -> Callable[[], None]:
    keys = iter(jax.random.split(jax.random.key(0), len(layer) * L + 1))

    def weight(shape: tuple[int, int]) -> TransposedWeight:
        return TransposedWeight(jax.random.normal(next(keys), shape) * shape[1] ** -0.5, shape[:1])

    layers, head = [[weight(shape) for shape in layer] for _ in range(L)], weight((V, D))

    @jax.jit
    def run(layers: list[list[TransposedWeight]], head: TransposedWeight, x_RD: jax.Array) -> jax.Array:
        def step(_, x_RD: jax.Array) -> jax.Array:
            for ws in layers:
                x_RD = _block(ws, x_RD)
                x_RD = x_RD * lax.rsqrt(jnp.mean(x_RD * x_RD, -1, keepdims=True))
            logits_RV = head.product(x_RD)
            return x_RD + 1e-3 * (logits_RV[:, :D] + jnp.max(logits_RV, -1, keepdims=True))

        return lax.fori_loop(0, STEPS, step, x_RD)

    return lambda: run(layers, head, jnp.ones((n_rows, D))).block_until_ready()


def _block(ws: list[TransposedWeight], x_RD: jax.Array) -> jax.Array:
    """One block with as little between its products as makes each of them count."""
    if len(ws) == 2:
        ends = [HEADS, HEADS + H, HEADS + 2 * H, HEADS + 2 * H + F]
        q, k, v, gate, up = jnp.split(ws[0].product(x_RD), ends, 1)
        out = ws[1].product(jnp.concatenate([q, gate * up], 1))
    else:
        q, k, v, gate, up = (w.product(x_RD) for w in ws[:5])
        out = ws[5].product(q) + ws[6].product(gate * up)
    return x_RD + out + jnp.pad(k + v, ((0, 0), (0, D - H)))


def of_torch(n_rows: int) -> Callable[[], None]:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    weights = [torch.randn(s) for s in (*SEPARATE * L, (V, D))]
    inputs = {n: torch.randn(n_rows, n) for n in (D, F)}

    def run() -> None:
        for _ in range(STEPS):
            for w in weights:
                torch.nn.functional.linear(inputs[w.shape[1]], w)

    return run


@dataclass(frozen=True)
class Case:
    rows: tuple[int, ...] = (1, 16)
    rounds: int = 7


def main(case: Case) -> None:
    """Print milliseconds per step."""
    for n_rows in case.rows:
        ways = {"upalm": of_xla(SEPARATE, n_rows), "two per layer": of_xla(TWO, n_rows)}
        if importlib.util.find_spec("torch"):
            ways["torch"] = of_torch(n_rows)
        seconds = {name: [] for name in ways}
        for way in ways.values():
            way()  # compiles
        for _ in range(case.rounds):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                seconds[name].append((time.perf_counter() - started) / STEPS)
        for name, found in seconds.items():
            low, mid, high = (1e3 * np.quantile(found, q) for q in (0, 0.5, 1))
            print(f"{n_rows:3} rows, {name:13}: {mid:5.1f} ms [{low:.1f}, {high:.1f}]")


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
