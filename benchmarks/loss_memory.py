"""Peak memory and time of the loss and its gradient over a large vocabulary: ours, chunked, beside whole logits.

python benchmarks/loss_memory.py --vocab 256000

Each in its own process, in turns: value and gradient with respect to the activations [B, T, D] and the table [V, D].
Memory is XLA's own figure for temporaries; time is the median of the rounds, and of their ratios.
"""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import tyro

LOSSES = ("whole", "chunked")


@dataclass(frozen=True)
class Case:
    vocab: int = 256_000
    batch: int = 2
    seq: int = 1024
    d_model: int = 512
    rounds: int = 3
    worker: str = ""
    """Measure one loss, in this process."""


def measure(case: Case) -> None:
    import jax
    import jax.numpy as jnp

    from upalm.training.loss import Z_LOSS, chunked_loss

    keys = jax.random.split(jax.random.key(0), 3)
    table = jax.random.normal(keys[0], (case.vocab, case.d_model)) * 0.02
    x = jax.random.normal(keys[1], (case.batch, case.seq, case.d_model))
    targets = jax.random.randint(keys[2], (case.batch, case.seq), 0, case.vocab)
    weights = jnp.ones((case.batch, case.seq))

    def whole(table, x):
        logits = x @ table.T
        log_z = jax.nn.logsumexp(logits, -1)
        found = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return jnp.sum(weights * (log_z - found + Z_LOSS * log_z**2))

    losses = {"whole": whole, "chunked": lambda table, x: chunked_loss(table, x, targets, weights, 1.0)[0]}
    run = jax.jit(jax.value_and_grad(losses[case.worker], (0, 1))).lower(table, x).compile()
    value, _ = jax.block_until_ready(run(table, x))
    started = time.perf_counter()
    jax.block_until_ready(run(table, x))
    seconds = time.perf_counter() - started
    temp = run.memory_analysis().temp_size_in_bytes / 1e6
    print(json.dumps({"value": float(value), "seconds": seconds, "temp_mb": temp}))


def main(case: Case) -> None:
    if case.worker:
        return measure(case)
    found = {name: [] for name in LOSSES}
    for _ in range(case.rounds):
        for name in LOSSES:
            command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
            found[name].append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    for name, rows in found.items():
        seconds = sorted(row["seconds"] for row in rows)
        head = f"{name:8} {rows[0]['temp_mb']:7.0f} MB  {statistics.median(seconds):6.2f} s"
        print(f"{head} {seconds}  loss {rows[0]['value']}")
    times = [b["seconds"] / a["seconds"] for a, b in zip(*found.values(), strict=True)]
    memory = found["chunked"][0]["temp_mb"] / found["whole"][0]["temp_mb"]
    print(f"chunked / whole: memory {memory:.3f}, time {statistics.median(times):.2f} {sorted(times)}")


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
