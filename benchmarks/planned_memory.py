"""Planned beside actual peak memory of a training step on this machine's CPU.

    python benchmarks/planned_memory.py --size small --batch 2

Actual is how much the resident memory of a process grows from before the weights are made to its peak, over two steps.
"""

import json
import resource
import subprocess
import sys
from dataclasses import dataclass, replace

import tyro


@dataclass(frozen=True)
class Case:
    size: str = "small"
    batch: int = 8
    worker: bool = False
    """Take the steps, in this process."""


def resident() -> float:
    with open("/proc/self/status", encoding="utf-8") as f:
        return next(float(line.split()[1]) for line in f if line.startswith("VmRSS")) * 1024


def steps(case: Case) -> None:
    import jax
    import jax.numpy as jnp

    from upalm.model.config import PALM
    from upalm.model.palm import Decoder
    from upalm.training.optim import Adafactor
    from upalm.training.step import TrainState, train_step
    from upalm.ul2r.rows import Batch

    config = PALM[case.size]
    optimizer = Adafactor().build(100)
    batch = Batch(*(jnp.zeros((1, case.batch, config.seq_len), x.dtype) for x in Batch.empty(1, 1)))
    batch = batch._replace(loss_weights=batch.loss_weights + 1)
    jax.block_until_ready(batch)
    before = resident()
    model = Decoder(config, key=jax.random.key(0))
    state = TrainState(model, optimizer.init(model))
    del model
    for _ in range(2):
        state, metrics = train_step(state, batch, optimizer=optimizer, n_denoisers=1)
    jax.block_until_ready((state, metrics))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


def build_plan(case: Case) -> float:
    from upalm.model.config import PALM
    from upalm.planning.lowering import training
    from upalm.planning.planner import plan
    from upalm.planning.topology import target_of
    from upalm.training.config import Scratch, TrainConfig

    from upalm.data.config import DataConfig  # isort: skip

    model = PALM[case.size]
    data = DataConfig("stdlib", "causal", seq_len=model.seq_len, batch_size=case.batch)
    config = replace(TrainConfig("", Scratch(model)), data=data)  # pyright: ignore[reportArgumentType]
    return plan(training(config, model, None), model, target_of("here"), None).memory_gib["total"] * 2**30


def main() -> None:
    case = tyro.cli(Case)
    if case.worker:
        return steps(case)
    words = [sys.executable, __file__, "--size", case.size, "--batch", str(case.batch), "--worker"]
    actual = float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    expected = build_plan(case)
    print(json.dumps({"planned_mb": expected / 1e6, "actual_mb": actual / 1e6, "ratio": expected / actual}))


if __name__ == "__main__":
    main()
