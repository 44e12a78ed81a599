"""Attention alone on one GPU in bf16: our kernels by their block sizes, beside cuDNN's with a mask and without.

    python benchmarks/gpu_kernels.py --out gpu_kernels.jsonl

Rows are causal, or have a prefix over their first half, which is a mask that cuDNN does not know. FLOPs are those of
the scores that the rows need, and five products of them in the backward pass, so that work beyond them lowers the rate.
Errors are differences to cuDNN with a mask, relative to the largest number. Every program is compiled before the first
is timed, several at a time.
"""

import json
import statistics
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from gpu_attention import PATHS
from peers import clock

SHAPES = {
    "llama1b": (8, 2048, 32, 8, 64),
    "smollm2": (16, 2048, 9, 3, 64),
    "llama8b": (4, 2048, 32, 8, 128),
    "1b": (16, 2048, 8, 1, 256),
}
"""Rows, positions, query heads, key heads, and their width."""

SETTINGS = {
    "llama1b": {
        "forward": [(128, 64, 4, 3), (64, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2), (128, 64, 4, 2)],
        "d_queries": [(64, 64, 4, 3), (128, 64, 4, 3), (128, 64, 8, 3), (64, 64, 4, 2)],
        "d_keys": [(64, 64, 4, 3), (64, 128, 8, 2), (128, 64, 8, 2), (64, 64, 4, 2)],
    },
    "llama8b": {
        "forward": [(128, 64, 8, 3), (64, 64, 4, 3), (128, 128, 8, 2), (128, 64, 8, 2)],
        "d_queries": [(128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 8, 2)],
        "d_keys": [(64, 64, 8, 2), (32, 128, 8, 3), (32, 64, 4, 3), (64, 128, 8, 2)],
    },
    "1b": {
        "forward": [(128, 64, 8, 2), (64, 64, 4, 2), (128, 32, 8, 3)],
        "d_queries": [(64, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2), (128, 32, 8, 2), (32, 64, 4, 2)],
        "d_keys": [(32, 64, 8, 2), (32, 64, 4, 2), (32, 32, 4, 2), (64, 32, 4, 2), (16, 64, 4, 3), (16, 64, 8, 2)],
    },
}
"""Queries and keys of a block, warps and stages of our kernels."""


@dataclass(frozen=True)
class Case:
    shapes: tuple[str, ...] = ("llama1b", "smollm2", "llama8b", "1b")
    repeats: int = 5
    calls: int = 8
    """Calls of a repeat, of which the mean is taken."""
    threads: int = 8
    """Programs that are compiled at a time."""
    out: Path = Path("gpu_kernels.jsonl")


class Program(NamedTuple):
    """A program to time, its settings, and the names of its inputs and outputs."""

    part: str
    """A kernel, or a pass of the whole: `forward`, `backward`, `both`."""
    path: str
    blocks: tuple[int, ...] | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    compiled: Any
    """A future of the compiled program, then the program."""


PRODUCTS = {"forward": 2, "both": 7, "d_queries": 3, "d_keys": 4, "backward": 5}
"""Products of scores that a part needs; the kernels of the gradients repeat two of the five."""


def arrays(shape: tuple[int, ...], rows: str) -> dict[str, Any]:
    """Return random inputs by name; `forward_results` adds what the forward pass finds."""
    import jax.numpy as jnp

    from upalm.model.attention import key_range

    (b, t, n, k, h), rng = shape, np.random.default_rng(0)
    prefix = np.zeros((b, t), bool)
    prefix[:, : t // 2 if rows == "prefix" else 0] = True
    visible = key_range(jnp.ones((b, t), jnp.int32), jnp.asarray(prefix))
    shapes = {"q": (b, t, n, h), "k": (b, k, t, h), "v": (b, k, t, h), "d_out": (b, t, n, h)}
    numbers = {x: jnp.asarray(rng.standard_normal(size, np.float32), "bfloat16") for x, size in shapes.items()}
    return numbers | {"start": visible.start, "end": visible.end}


def programs(shape: tuple[int, ...], name: str, given: dict[str, Any], pool: ThreadPoolExecutor) -> list[Program]:
    """Lower all programs of a shape, which the pool compiles."""
    import jax

    from upalm.model import attention
    from upalm.model import flash_attention_gpu as ours

    found = []

    def add(part: str, path: str, function: Callable[..., Any], inputs: str, outputs: str, blocks: Any = None) -> None:
        words = tuple(inputs.split())
        try:
            lowered = jax.jit(function).lower(*(given[word] for word in words))
            future = pool.submit(lowered.compile)
        except Exception as e:
            future = Future()
            future.set_exception(e)
        found.append(Program(part, path, blocks, words, tuple(outputs.split()), future))

    def forward(q, k, v, start, end):
        return attention.attend(q, k, v, attention.KeyRange(start, end))

    def causal(q, k, v):
        return jax.nn.dot_product_attention(
            q, k.swapaxes(1, 2), v.swapaxes(1, 2), is_causal=True, implementation="cudnn"
        )

    def both(function, q, k, v, d_out, *visible):
        out, gradient = jax.vjp(lambda q, k, v: function(q, k, v, *visible), q, k, v)
        return out, *gradient(d_out)

    def gradient(kernel, blocks, *arrays):
        return kernel(ours.Given(*arrays), blocks, interpret=False)

    kernels = attention.GPU_KERNELS
    try:
        for path, order in PATHS.items():
            jax.clear_caches()  # the kernel is chosen while a program is traced
            attention.GPU_KERNELS = order
            add("forward", path, forward, "q k v start end", "out")
            add("both", path, partial(both, forward), "q k v d_out start end", "out d_q d_k d_v")
    finally:
        attention.GPU_KERNELS = kernels
    add("forward", "cuDNN, no mask", causal, "q k v", "out")
    add("both", "cuDNN, no mask", partial(both, causal), "q k v d_out", "out d_q d_k d_v")
    add("backward", "pallas", ours.backward, "q k v start end out log_total d_out", "d_q d_k d_v")
    kernel_inputs = "start end q d_out log2_total mean k v"
    for part, settings in SETTINGS.get(name, {}).items():
        for setting in settings:
            blocks = ours.Blocks(*setting)
            if part == "forward":
                add(part, "pallas", partial(ours.forward, blocks=blocks), "q k v start end", "out log_total", setting)
            else:
                outputs = "d_q" if part == "d_queries" else "d_k d_v"
                add(part, "pallas", partial(gradient, getattr(ours, part), blocks), kernel_inputs, outputs, setting)
    return found


def forward_results(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return inputs of the backward pass that the forward kernel finds, in its default blocks."""
    import jax
    import jax.numpy as jnp

    from upalm.model import flash_attention_gpu as ours

    @jax.jit
    def find(q, k, v, start, end, d_out):
        out, log_total = ours.forward(q, k, v, start, end)
        mean = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), -1)
        log2_total = (log_total * np.float32(np.log2(np.e))).swapaxes(1, 2)
        return {"out": out, "log_total": log_total, "log2_total": log2_total, "mean": mean.swapaxes(1, 2)}

    return find(*(inputs[x] for x in ("q", "k", "v", "start", "end", "d_out")))


def stand_ins(shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the shapes of `forward_results`."""
    import jax

    b, t, n, _, h = shape
    sizes = {"log_total": (b, t, n), "log2_total": (b, n, t), "mean": (b, n, t)}
    found = {name: jax.ShapeDtypeStruct(size, "float32") for name, size in sizes.items()}
    return found | {"out": jax.ShapeDtypeStruct((b, t, n, h), "bfloat16")}


def timed(function: Any, arguments: list[Any], case: Case) -> tuple[list[float], Any]:
    """Return seconds per call of each repeat, and the results of a call."""
    import jax

    results, seconds = jax.block_until_ready(function(*arguments)), []
    for _ in range(case.repeats):
        started = time.perf_counter()
        for _ in range(case.calls):
            last = function(*arguments)
        jax.block_until_ready(last)  # pyright: ignore[reportPossiblyUnboundVariable]
        seconds.append((time.perf_counter() - started) / case.calls)
    return seconds, results


def worst(found: Any, true: Any) -> float:
    """The largest difference, relative to the largest number."""
    import jax.numpy as jnp

    found, true = found.astype(jnp.float32), true.astype(jnp.float32)
    return float(jnp.abs(found - true).max() / jnp.abs(true).max())


def measure(program: Program, inputs: dict[str, Any], true: dict[str, Any], n_flops: float, case: Case) -> dict:
    """Return a program's time, rate and errors, and whether its results repeat."""
    arguments = [inputs[x] for x in program.inputs]
    seconds, results = timed(program.compiled, arguments, case)
    named = dict(zip(program.outputs, results if isinstance(results, tuple | list) else (results,), strict=True))
    if program.path == "cuDNN":  # the first that are measured
        true |= named
    again = program.compiled(*arguments)
    again = again if isinstance(again, tuple | list) else (again,)
    median = statistics.median(seconds)
    return {
        "ms": 1e3 * median,
        "range": [1e3 * min(seconds), 1e3 * max(seconds)],
        "tflops": n_flops * PRODUCTS[program.part] / median / 1e12,
        "errors": {x: worst(array, true[x]) for x, array in named.items() if x in true},
        "repeats_bit_for_bit": all(bool((a == b).all()) for a, b in zip(named.values(), again, strict=True)),
    }


def rounded(value: Any) -> Any:
    """Round numbers to four digits: more do not repeat from run to run."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main(case: Case) -> None:
    import jax

    rows, started = [], time.perf_counter()

    def record(**fields: Any) -> None:
        with case.out.open("a", encoding="utf-8") as file:
            print(json.dumps(rounded(fields)), file=file)

    with ThreadPoolExecutor(case.threads) as pool:
        waiting = {
            name: programs(SHAPES[name], name, arrays(SHAPES[name], "causal") | stand_ins(SHAPES[name]), pool)
            for name in case.shapes
        }
        ready = {name: [] for name in case.shapes}
        for name, found in waiting.items():
            for program in found:
                try:
                    ready[name].append(program._replace(compiled=program.compiled.result()))
                except Exception as e:
                    traceback.print_exception(e)
                    setting = {"part": program.part, "path": program.path, "blocks": program.blocks}
                    record(shape=name, **setting, error=f"{type(e).__name__}: {e}"[:300])
    compile_s, device = time.perf_counter() - started, jax.local_devices()[0].device_kind
    print(f"compiled in {compile_s:.0f} s on {device}", flush=True)
    for name in case.shapes:
        b, _, n, _, h = SHAPES[name]
        for kind in ("causal", "prefix"):
            inputs, true = arrays(SHAPES[name], kind), {}
            try:
                inputs |= forward_results(inputs)
            except Exception:
                traceback.print_exc()
            n_flops = 2.0 * n * h * float((inputs["end"] - inputs["start"]).sum())
            for program in sorted(ready[name], key=lambda program: program.path != "cuDNN"):
                if program.path == "cuDNN, no mask" and kind == "prefix":
                    continue
                setting = {"part": program.part, "path": program.path, "blocks": program.blocks}
                try:
                    found = measure(program, inputs, true, n_flops, case)
                    errors = " ".join(f"{x}: {error:.4f}" for x, error in found["errors"].items())
                    blocks = "default" if program.blocks is None else program.blocks
                    speed = f"{found['ms']:.3f}", f"{found['tflops']:.0f}"
                    cells = (program.part, program.path, blocks, *speed, errors, found["repeats_bit_for_bit"])
                    rows.append((name, kind, *cells))
                except Exception as e:
                    traceback.print_exc()
                    found = {"error": f"{type(e).__name__}: {e}"[:300]}
                record(shape=name, rows=kind, size=SHAPES[name], device=device, **setting, **found)
    header = ("shape", "rows", "part", "path", "blocks", "ms", "TFLOP/s", "errors", "same again")
    clock.print_table(header, rows)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
