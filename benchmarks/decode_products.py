"""The weight products of one decoding step by themselves, at the shapes of `generate_speed.py`, by kind of weight.

python benchmarks/decode_products.py --config small --rows 1 16

`upalm` multiplies as `decode` does, in fp32. `two per layer` (in a parallel block) has one product for all that reads
the norm, one for both outputs. `bf16` and `int8` have both operands in that type. `widened` has the weights in it,
converted to fp32 inside the product's own loop. `torch` (where it is installed) has fp32 linear layers. They take
turns; medians and range. XLA_FLAGS count, and `taskset -c 0` before the command gives one core's.
"""

import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from generate_speed import bytes_per_second
from jax import lax
from peers.shapes import SHAPES, Shape

from upalm.model.layers import TransposedWeight

STEPS = 20
INT8_SCALE = 32
"""Of normal numbers, so that int8 holds four standard deviations."""
LANES = 32
Layer = tuple[tuple[int, int], ...]  # outputs and inputs of each matrix


def separate(shape: Shape) -> Layer:
    """Queries, keys, values, gate, up, and the two outputs."""
    d, f, n, k = shape.d_model, shape.d_ff, shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    return ((n, d), (k, d), (k, d), (f, d), (f, d), (d, n), (d, f))


def two(shape: Shape) -> Layer:
    """All inputs in one matrix, both outputs in another."""
    *inputs, (d, n), (_, f) = separate(shape)
    return ((sum(n_out for n_out, _ in inputs), d), (d, n + f))


Product = Callable[[jax.Array, jax.Array], jax.Array]


def plain(kernel_OI: jax.Array, x_RI: jax.Array) -> jax.Array:
    return TransposedWeight(kernel_OI, kernel_OI.shape[:1]).product(x_RI)


def low_precision(kernel_OI: jax.Array, x_RI: jax.Array) -> jax.Array:
    is_int = kernel_OI.dtype == jnp.int8
    x_IR = (x_RI.T * (INT8_SCALE if is_int else 1)).astype(kernel_OI.dtype)
    accumulated = jnp.int32 if is_int else jnp.float32
    y_OR = jnp.matmul(kernel_OI, lax.optimization_barrier(x_IR), preferred_element_type=accumulated)
    scale = (INT8_SCALE * INT8_SCALE * x_RI.shape[1] ** 0.5) if is_int else 1
    return lax.optimization_barrier(y_OR).T.astype(jnp.float32) / scale


def widened(kernel_OI: jax.Array, x_RI: jax.Array) -> jax.Array:
    """Sums in lanes first, because XLA:CPU does not vectorise a sum over the last axis."""
    o, r = len(kernel_OI), len(x_RI)
    kernel_OJL = kernel_OI.reshape(o, -1, LANES).astype(jnp.float32)
    y_ROL = jnp.sum(kernel_OJL[None] * x_RI.reshape(r, 1, -1, LANES), 2)
    scale = (INT8_SCALE * x_RI.shape[1] ** 0.5) if kernel_OI.dtype == jnp.int8 else 1
    return jnp.sum(y_ROL, -1) / scale


def of_xla(
    shape: Shape, layer: Layer, n_rows: int, product: Product = plain, dtype: str = "float32"
) -> Callable[[], None]:
    d = shape.d_model
    keys = iter(jax.random.split(jax.random.key(0), len(layer) * shape.n_layers + 1))

    def weight(n_out: int, n_in: int) -> jax.Array:
        scale = INT8_SCALE if dtype == "int8" else n_in**-0.5
        return (jax.random.normal(next(keys), (n_out, n_in)) * scale).astype(dtype)

    layers, head = [[weight(*s) for s in layer] for _ in range(shape.n_layers)], weight(shape.vocab_size, d)

    @jax.jit
    def run(layers: list[list[jax.Array]], head: jax.Array, x_RD: jax.Array) -> jax.Array:
        def step(_, x_RD: jax.Array) -> jax.Array:
            for ws in layers:
                x_RD = _block(shape, ws, x_RD, product)
                x_RD = x_RD * lax.rsqrt(jnp.mean(x_RD * x_RD, -1, keepdims=True))
            logits_RV = product(head, x_RD)
            return x_RD + 1e-3 * (logits_RV[:, :d] + jnp.max(logits_RV, -1, keepdims=True))

        return lax.fori_loop(0, STEPS, step, x_RD)

    return lambda: run(layers, head, jnp.ones((n_rows, d))).block_until_ready()


def _block(shape: Shape, ws: list[jax.Array], x_RD: jax.Array, product: Product) -> jax.Array:
    """One block with as little between its products as makes each of them count."""
    if len(ws) == 2:
        ends = np.cumsum([n_out for n_out, _ in separate(shape)[:4]])
        q, k, v, gate, up = jnp.split(product(ws[0], x_RD), ends, 1)
        out = product(ws[1], jnp.concatenate([q, gate * up], 1))
    else:
        q, k, v, gate, up = (product(w, x_RD) for w in ws[:5])
        out = product(ws[5], q) + product(ws[6], gate * up)
    return x_RD + out + jnp.pad(k + v, ((0, 0), (0, x_RD.shape[1] - k.shape[1])))


def of_torch(shape: Shape, n_rows: int) -> Callable[[], None]:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    sizes = (*separate(shape) * shape.n_layers, (shape.vocab_size, shape.d_model))
    weights, inputs = [torch.randn(s) for s in sizes], {n: torch.randn(n_rows, n) for _, n in sizes}

    def run() -> None:
        for _ in range(STEPS):
            for w in weights:
                torch.nn.functional.linear(inputs[w.shape[1]], w)

    return run


def flops_per_second(n: int = 2048, n_rounds: int = 7) -> float:
    """The best of several products of two square matrices."""
    matrix, multiply = jnp.ones((n, n)), jax.jit(jnp.matmul)
    seconds = []
    for _ in range(n_rounds):
        started = time.perf_counter()
        multiply(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * n**3 / min(seconds)


@dataclass(frozen=True)
class Case:
    config: Literal["small", "smollm2"] = "small"
    rows: tuple[int, ...] = (1, 16)
    rounds: int = 7


def main(case: Case) -> None:
    """Print milliseconds per step."""
    shape, bandwidth, flops = SHAPES[case.config], bytes_per_second(), flops_per_second()
    n_bytes = shape.weight_bytes()
    print(f"{bandwidth / 1e9:.1f} GB/s, {flops / 1e9:.0f} GFLOP/s")
    for n_rows in case.rows:
        reading, arithmetic = 1e3 * n_bytes / bandwidth, 1e3 * n_rows * n_bytes / 2 / flops
        print(f"{n_rows:3} rows: reading takes {reading:.1f} ms, the arithmetic {arithmetic:.1f} ms")
        layer = separate(shape)
        ways = {"upalm": of_xla(shape, layer, n_rows), "two per layer": of_xla(shape, two(shape), n_rows)}
        for name, dtype in (("bf16", "bfloat16"), ("int8", "int8")):
            ways[name] = of_xla(shape, layer, n_rows, low_precision, dtype)
            ways[f"{name}, widened"] = of_xla(shape, layer, n_rows, widened, dtype)
        if importlib.util.find_spec("torch"):
            ways["torch"] = of_torch(shape, n_rows)
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
