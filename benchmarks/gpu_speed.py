"""Speed and memory on one GPU in bf16: training beside transformers (`peers/hf.py`), and greedy generation.

    python benchmarks/gpu_speed.py --shapes 1b smollm2 llama1b --only train
    python benchmarks/gpu_speed.py --shapes smollm2 llama1b --only generate

Each cell is a process, which has the GPU to itself. It appends records to the file `out` as it finds them, so that a
run that is cut short keeps what it has. A cell that fails, or takes longer than `limit`, has an `error` there. Both
train with AdamW; upalm has fp32 parameters and moments, the peer bf16 ones. The peer keeps all activations. Its
layers and its loss are compiled, and not the whole: a whole program of transformers gives attention a mask, which
flash attention does not take. The peer needs: pip install torch transformers
"""

import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro
from gpu_attention import PATHS, kernel_calls
from peers import clock
from peers.shapes import ADAMW, SHAPES, Shape, random_rows
from train_speed import causal_batches, model_config

from upalm.distributed.chips import GIB, chip_of

Part = Literal["train", "generate"]
Contender = Literal["upalm", "peer"]
AttentionPath = Literal["pallas", "cuDNN", "plain"]


FULL = {"1b": 16, "smollm2": 16, "llama1b": 8}
"""Rows of 2048 tokens that a step of either side takes on an H100."""


@dataclass(frozen=True)
class Case:
    only: tuple[Part, ...] = ("train", "generate")
    shapes: tuple[str, ...] = ("1b", "smollm2", "llama1b")
    """Shapes of `peers/shapes.py`."""
    contenders: tuple[Contender, ...] = ("upalm", "peer")
    """Who trains."""
    paths: tuple[AttentionPath, ...] = ("pallas", "cuDNN", "plain")
    """Paths of upalm's attention that are measured."""
    batch: int = 0
    """Rows of a training step; 0 for what fills 80 GB (FULL)."""
    seq: int = 2048
    """Tokens of a row."""
    remat: Literal["none", "matmuls", "full"] = "matmuls"
    """What upalm's backward pass recomputes (`ModelConfig.remat`)."""
    rounds: int = 3
    steps: int = 5
    """Training steps of a round, of which the mean is taken."""
    prompt: int = 128
    """Tokens of each prompt in generation."""
    new: int = 256
    """Tokens decoded after it."""
    limit: float = 150.0
    """Seconds that a cell may take."""
    out: Path = Path("gpu_speed.jsonl")
    worker: str = ""
    """Be this cell: the script sets it for the processes that it starts."""

    @property
    def n_slots(self) -> int:
        """Positions of a row's cache in generation: BOS, the prompt, and the answers in whole buckets."""
        from upalm.inference.decoding import round_up

        return 1 + round_up(self.prompt) + round_up(1 + self.new)

    def shape(self, name: str) -> Shape:
        return SHAPES[name]._replace(seq_len=self.seq, batch_size=self.batch or FULL.get(name, 16))

    def record(self, **fields: Any) -> None:
        cell = dict(zip(("part", "shape", "contender"), self.worker.split(":"), strict=True))
        with self.out.open("a", encoding="utf-8") as file:
            print(json.dumps(cell | fields), file=file)

    @contextmanager
    def caught(self, **fields: Any) -> Iterator[None]:
        """Record an error and go on."""
        try:
            yield
        except Exception as e:
            traceback.print_exc()
            self.record(**fields, error=f"{type(e).__name__}: {e}"[:300])


def wait_for_turn() -> None:
    """Every process imports at once, before the first of them is given the GPU."""
    if not sys.stdin.readline():
        sys.exit("the run was ended")


# --- Training -------------------------------------------------------------------------------------


def timed(steps: dict[str, Callable[[int], Any]], case: Case) -> dict[str, list[float]]:
    """Seconds per step of each contender in each round, in turns. A call makes that many steps and waits for them."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(case.rounds):
        for name, run in steps.items():
            started = time.perf_counter()
            run(case.steps)
            seconds[name].append((time.perf_counter() - started) / case.steps)
    return seconds


def train_upalm(case: Case, name: str) -> None:
    """Time all paths of attention: our kernels, cuDNN's, and the plain one. All begin with the same weights."""
    import equinox as eqx
    import jax
    import optax

    from upalm.model import attention
    from upalm.model.palm import Decoder, empty_model
    from upalm.planning.planner import total_bytes
    from upalm.training.step import TrainState, train_step

    wait_for_turn()
    shape, device = case.shape(name), jax.local_devices()[0]
    config = replace(model_config(shape), compute_dtype="bfloat16", remat=case.remat)
    batches = causal_batches(random_rows(shape.batch_size, shape.seq_len + 1, shape.vocab_size))
    optimizer: Any = optax.adamw(**ADAMW)  # pyright: ignore[reportArgumentType]
    empty = empty_model(config)
    shapes = TrainState(empty, jax.eval_shape(optimizer.init, empty))
    programs, facts = {}, {}
    for path in case.paths:
        with case.caught(path=path):
            jax.clear_caches()  # else each path has the first one's program
            attention.GPU_KERNELS = PATHS[path]
            started = time.perf_counter()
            lowered = train_step.lower(shapes, batches, optimizer=optimizer, n_denoisers=1)
            programs[path] = lowered.compile()
            facts[path] = {
                "compile_s": time.perf_counter() - started,
                "planned": total_bytes(programs[path].memory_analysis()),
            } | kernel_calls(programs[path])
            print(name, path, facts[path], file=sys.stderr, flush=True)

    state: Any = None

    def renew_state() -> None:
        nonlocal state
        state = None  # first, because a device may have no room for two
        model = eqx.filter_jit(Decoder)(config, key=jax.random.key(0))
        state = TrainState(model, jax.jit(optimizer.init)(model))

    def run(program: Any, n_steps: int) -> float:
        nonlocal state
        for _ in range(n_steps):
            state, metrics = program(state, batches)
        sums = metrics.sums  # pyright: ignore[reportPossiblyUnboundVariable]
        return float(sums.nll.sum() / sums.weight.sum())

    def peak() -> int:
        return (device.memory_stats() or {}).get("peak_bytes_in_use", 0)

    ready, before = {}, 0  # a process has one peak for its whole life: the path with the higher one comes last
    for path in sorted(programs, key=lambda path: facts[path]["planned"]):
        with case.caught(path=path):
            renew_state()  # so that the losses of all paths are of the same steps
            facts[path]["loss"] = [run(programs[path], 1) for _ in range(3)][-1]
            before, facts[path]["peak"] = peak(), peak() if peak() > before else None
            ready[path] = partial(run, programs[path])
    if ready:
        renew_state()  # a step that failed took the state with it
    for path, seconds in timed(ready, case).items():
        record_training(case, name, device.device_kind, seconds, path=path, remat=case.remat, **facts[path])


def train_peer(case: Case, name: str) -> None:
    import torch
    from peers import hf

    hf.preload()
    wait_for_turn()
    shape, on_gpu = case.shape(name), torch.cuda.is_available()
    rows = random_rows(shape.batch_size, shape.seq_len + 1, shape.vocab_size)
    started = time.perf_counter()
    step = hf.train_step(shape, rows, "layers", "cuda" if on_gpu else "cpu", torch.bfloat16)

    def run(n_steps: int) -> float:
        for _ in range(n_steps):
            loss = step()
        return loss.item()  # pyright: ignore[reportPossiblyUnboundVariable]

    run(1)
    facts: dict[str, Any] = {"compile_s": time.perf_counter() - started}
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    facts["loss"] = run(3)
    if on_gpu:
        facts["peak"] = torch.cuda.max_memory_allocated()
    kind = torch.cuda.get_device_name() if on_gpu else "cpu"
    record_training(case, name, kind, timed({"peer": run}, case)["peer"], **facts)


def record_training(case: Case, name: str, device: str, seconds: list[float], **facts: Any) -> None:
    shape, chip = case.shape(name), chip_of(device)
    rate = shape.batch_size * shape.seq_len / statistics.median(seconds)
    mfu = rate * model_config(shape).train_flops_per_token(shape.seq_len) / chip.flops if chip else None
    size = {"rows": shape.batch_size, "seq": shape.seq_len}
    case.record(**size, device=device, seconds=seconds, tokens_per_s=rate, mfu=mfu, **facts)


# --- Generation -----------------------------------------------------------------------------------

BATCHES = (1, 16)


def copy_bandwidth(n_bytes: int = 2**31, n_rounds: int = 10) -> float:
    """Bytes per second of reading and writing an array, the best of several copies."""
    import jax
    import jax.numpy as jnp

    copy, seconds = jax.jit(lambda x: x + 1), []
    x = jax.block_until_ready(jnp.zeros(n_bytes // 4))
    for _ in range(n_rounds):
        started = time.perf_counter()
        jax.block_until_ready(copy(x))
        seconds.append(time.perf_counter() - started)
    return 2 * n_bytes / min(seconds)


def generate(case: Case, name: str) -> None:
    """Greedy decoding with a cache. Steps are timed between two looks at the answers, `every` steps apart."""
    import equinox as eqx
    import jax

    from upalm.inference.decoding import DecodingModel, Task, decode_stream
    from upalm.model.palm import Decoder

    wait_for_turn()
    shape, every = case.shape(name), max(1, case.new // 4)
    config = replace(model_config(shape), compute_dtype="bfloat16")
    model = DecodingModel.of(eqx.filter_jit(Decoder)(config, key=jax.random.key(0)))
    device = jax.local_devices()[0].device_kind
    chip, measured = chip_of(device), copy_bandwidth() if chip_of(device) else None
    for n_rows in BATCHES:
        with case.caught(rows=n_rows):
            tasks = [Task(row, 1 + case.new) for row in random_rows(n_rows, case.prompt, shape.vocab_size)]

            def call(tasks=tasks) -> list[float]:
                times, answers = [time.perf_counter()], []
                for answers in decode_stream(model, tasks, every=every):  # noqa: B007
                    times.append(time.perf_counter())
                assert max(len(answer.tokens) for [answer] in answers) == 1 + case.new, "every answer ended early"
                return times

            started, _ = time.perf_counter(), call()
            compile_s, calls = time.perf_counter() - started, [call() for _ in range(case.rounds)]
            # the first answers have one token each, and each later one `every` more
            step_s = [(b - a) / every for _, *times in calls for a, b in zip(times[:-1], times[1:], strict=True)]
            cache_bytes = 2 * 2 * shape.n_layers * n_rows * shape.n_kv_heads * case.n_slots * shape.d_head
            n_bytes, step = shape.weight_bytes(2) + cache_bytes, statistics.median(step_s)
            case.record(
                rows=n_rows,
                device=device,
                compile_s=compile_s,
                step_s=[min(step_s), step, max(step_s)],
                tokens_per_s=n_rows / step,
                whole_tokens_per_s=n_rows * (1 + case.new) / statistics.median(t[-1] - t[0] for t in calls),
                bytes_per_step=n_bytes,
                copy_bandwidth=measured,
                of_data_sheet=n_bytes / step / chip.bandwidth if chip else None,
                of_copy=n_bytes / step / measured if measured else None,
            )


# --- Run ------------------------------------------------------------------------------------------


def cells(case: Case) -> list[str]:
    """Parts, shapes and contenders, in the order of their turns."""
    train = [f"train:{name}:{who}" for name in case.shapes for who in case.contenders]
    by_part = {"train": train, "generate": [f"generate:{name}:upalm" for name in case.shapes]}
    return [cell for part in case.only for cell in by_part[part]]


def work(case: Case) -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # one process follows the other
    part, name, who = case.worker.split(":")
    run = generate if part == "generate" else train_peer if who == "peer" else train_upalm
    run(case, name)


def share(x: float | None) -> str:
    return "" if x is None else f"{x:.1%}"


def gib(x: float | None) -> str:
    return f"{x / GIB:.1f}" if x else ""


def like_cases(record: dict[str, Any]) -> tuple[Any, ...]:
    """Return what two measures of training must share to be compared, as in docs/results_tables.py."""
    return tuple(record[key] for key in ("shape", "rows", "seq", "device"))


def print_tables(records: list[dict[str, Any]]) -> None:
    def of(part: str) -> list[dict[str, Any]]:
        return [record for record in records if record["part"] == part and "error" not in record]

    header = ("shape", "batch", "who", "ms per step (range)", "tokens/s", "MFU", "of the peer", "peak GiB", "planned")
    peers = {like_cases(r): r["tokens_per_s"] for r in of("train") if r["contender"] == "peer"}
    rows = []
    for r in of("train"):
        ms, peer = [1e3 * s for s in r["seconds"]], peers.get(like_cases(r))
        speed = f"{statistics.median(ms):.1f} ({min(ms):.1f} to {max(ms):.1f})", f"{r['tokens_per_s']:.0f}"
        ratio = "" if peer is None else f"{r['tokens_per_s'] / peer:.2f}"
        memory = gib(r.get("peak")), gib(r.get("planned"))
        who = " ".join(r[key] for key in ("contender", "path", "remat") if key in r)
        rows.append((r["shape"], f"{r['rows']} x {r['seq']}", who, *speed, share(r["mfu"]), ratio, *memory))
    clock.print_table(header, rows)
    rows = [
        (r["shape"], r["rows"], f"{r['tokens_per_s']:.0f}", f"{r['whole_tokens_per_s']:.0f}")
        + (f"{1e3 * r['step_s'][1]:.2f}", share(r["of_data_sheet"]), share(r["of_copy"]))
        for r in of("generate")
    ]
    header = (
        "shape",
        "rows",
        "decoding, tokens/s",
        "with prefill",
        "ms per step",
        "of data sheet's bandwidth",
        "of copy",
    )
    clock.print_table(header, rows)
    for r in records:
        if "error" in r:
            print("absent:", *(str(v) for k, v in r.items() if v))


def main(case: Case) -> None:
    if case.worker:
        return work(case)
    names = cells(case)
    processes = {
        name: subprocess.Popen(words, stdin=subprocess.PIPE, text=True)
        for name, words in clock.workers(__file__, tuple(names)).items()
    }
    for name, process in processes.items():
        started = time.perf_counter()
        try:
            process.communicate("\n", timeout=case.limit)
            if process.returncode:
                replace(case, worker=name).record(error=f"ended with status {process.returncode}: its message is above")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            replace(case, worker=name).record(error=f"took longer than {case.limit:.0f} s")
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    print_tables([json.loads(line) for line in case.out.read_text(encoding="utf-8").splitlines()])


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
