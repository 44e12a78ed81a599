"""Errors of attention and its gradient on one GPU in bf16, by our kernels, by cuDNN and by the plain path.

    python benchmarks/gpu_attention.py --out gpu_attention.jsonl

All are beside the definition in fp32, over causal rows, rows with a prefix, packed rows and rows of padding alone.
Errors are relative to the largest number of the row. A call that fails has an `error` in the file.
"""

import json
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from peers import clock

HEADS = {
    "multi-query, 256 wide": (8, 1, 256, 512),
    "multi-query, 64 wide": (8, 1, 64, 512),
    "grouped, 64 wide": (9, 3, 64, 512),
    "grouped, 128 wide": (8, 2, 128, 256),
    "separate, 128 wide": (8, 8, 128, 512),
    "grouped, 64 wide, odd length": (8, 2, 64, 129),
}
"""Query heads, key heads, their width, and positions."""

PATHS: dict[str, tuple[Any, ...]] = {"pallas": ("pallas",), "cuDNN": ("cuDNN",), "plain": ()}
"""Values of `attention.GPU_KERNELS` that leave one path."""

ROWS = ("causal", "prefix", "packed", "padding alone")
HEADER = ("heads", "path", "calls of our kernels", "of cuDNN", "worst error of the output", "dq", "dk", "dv")


@dataclass(frozen=True)
class Case:
    out: Path = Path("gpu_attention.jsonl")


def segments(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Segment ids and prefix mask of a batch with one row of each of ROWS."""
    ids, prefix = np.ones((len(ROWS), n), np.int32), np.zeros((len(ROWS), n), bool)
    prefix[1, : n // 2 + 3] = True
    ids[2] = np.repeat([1, 2, 3, 0], [n // 5, n // 3, n // 4, n - n // 5 - n // 3 - n // 4])
    prefix[2, : n // 8] = prefix[2, n // 5 : n // 5 + n // 6] = True
    ids[3] = 0
    return ids, prefix


def inputs(n: int, k: int, h: int, t: int, dtype: str) -> list[Any]:
    """Queries, keys and values, and a gradient of the output: the same numbers in either precision."""
    import jax.numpy as jnp

    rng, b = np.random.default_rng(0), len(ROWS)
    shapes = ((b, t, n, h), (b, k, t, h), (b, k, t, h), (b, t, n, h))
    return [jnp.asarray(rng.normal(size=shape), "bfloat16").astype(dtype) for shape in shapes]


def values_and_gradients(function: Any, arrays: list[Any], visible: Any) -> tuple[list[np.ndarray], dict[str, int]]:
    """Return the output and the gradients of queries, keys and values, and how often the program calls kernels."""
    import jax

    def both(q, k, v, d_out):
        value, gradient = jax.vjp(lambda *qkv: function(*qkv, visible), q, k, v)
        return value, *gradient(d_out)

    program = jax.jit(both).lower(*arrays).compile()
    return [np.asarray(x, np.float32) for x in program(*arrays)], kernel_calls(program)


def kernel_calls(program: Any) -> dict[str, int]:
    """Count a compiled program's calls of cuDNN's attention (`calls`) and of our kernels (`own_calls`)."""
    text = program.as_text() or ""
    targets = {"calls": "__cudnn$fmha", "own_calls": "__gpu$xla.gpu.triton"}
    return {name: text.count(f'custom_call_target="{target}') for name, target in targets.items()}


def worst(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.abs(found - true).max() / np.abs(true).max())


def errors_by_row(heads: str, path: str) -> dict[str, Any]:
    """Errors of output, and of the gradients of queries, keys and values."""
    import jax
    import jax.numpy as jnp

    from upalm.model import attention

    visible = attention.key_range(*map(jnp.asarray, segments(HEADS[heads][-1])))
    with jax.default_matmul_precision("highest"):
        true, _ = values_and_gradients(attention.attention_reference, inputs(*HEADS[heads], "float32"), visible)
    kernels = attention.GPU_KERNELS
    try:
        jax.clear_caches()  # the path is chosen while the program is traced
        attention.GPU_KERNELS = PATHS[path]
        found, calls = values_and_gradients(attention.attend, inputs(*HEADS[heads], "bfloat16"), visible)
    finally:
        attention.GPU_KERNELS = kernels
    pairs = list(zip(found, true, strict=True))
    return calls | {row: [worst(x[i], y[i]) for x, y in pairs] for i, row in enumerate(ROWS)}


def main(case: Case) -> None:
    rows = []
    for heads in HEADS:
        for path in PATHS:
            try:
                record = errors_by_row(heads, path)
                by_array = zip(*(record[row] for row in ROWS), strict=True)
                calls = record["own_calls"], record["calls"]
                rows.append((heads, path, *calls, *(f"{max(errors):.4f}" for errors in by_array)))
            except Exception as e:
                traceback.print_exc()
                record = {"error": f"{type(e).__name__}: {e}"[:300]}
            with case.out.open("a", encoding="utf-8") as file:
                print(json.dumps({"heads": heads, "path": path} | record), file=file)
    clock.print_table(HEADER, rows)


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
