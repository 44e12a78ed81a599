"""What the loop around a training step costs: data, metrics and bookkeeping, as a share of the step.

python benchmarks/host_overhead.py --size small

One process: steps of the loop (`loop.fit`, without saves and evaluations) against the same steps on a batch that is
already on the device, in turns. The share is 1 - bare / loop.
"""

import inspect
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class Case:
    size: Literal["tiny", "small"] = "small"
    batch: int = 4
    seq: int = 512
    n_steps: int = 6
    rounds: int = 3


def main(case: Case) -> None:
    import argparse

    import jax

    from upalm.data import sources as text
    from upalm.data.config import DataConfig
    from upalm.data.tokenizer import SentencePiece
    from upalm.data.tokens import encode
    from upalm.model.config import PALM
    from upalm.model.palm import Decoder
    from upalm.training import loop
    from upalm.training.config import Scratch, TrainConfig
    from upalm.training.optim import Adafactor
    from upalm.training.step import TrainState

    source = inspect.getsource(argparse) * 4
    tokenizer = SentencePiece.train([source], 512)
    tokens = encode(tokenizer, [text.Document("a", source)])
    config = TrainConfig(
        out=Path("unused"),
        start=Scratch(replace(PALM[case.size], seq_len=case.seq)),
        data=DataConfig(seq_len=case.seq, batch_size=case.batch),
        optimizer=Adafactor(),
        n_steps=case.n_steps + 2,
        save_every=10_000,
        eval_every=10_000,
        log_every=1,
    )
    model = Decoder(config.start.model, key=jax.random.key(0))
    ratios = []
    for _ in range(case.rounds):
        with tempfile.TemporaryDirectory() as folder:
            run = loop._Run(replace(config, out=Path(folder) / "run"), model, tokenizer, tokens, tokens, "")
            batch = run._next(iter(run.loader.batches(0, 1)))
            options = {"optimizer": run.optimizer, "n_denoisers": run.n_denoisers}
            state = run.state
            for _ in range(2):  # compiled
                state, _ = loop.train_step(state, batch, run.requests(0), **options)
            jax.block_until_ready(state)
            started = time.perf_counter()
            for _ in range(case.n_steps):
                state, _ = loop.train_step(state, batch, run.requests(0), **options)
            jax.block_until_ready(state)
            bare = (time.perf_counter() - started) / case.n_steps

            run.state, run.checkpoints.save = TrainState(*state), lambda *_: None
            stamps: list[float] = []

            def write(step, values, stamps=stamps):
                if "loss" in values:
                    stamps.append(time.perf_counter())

            run.log.write = write
            run.to_the_end()
            looped = (stamps[case.n_steps] - stamps[0]) / case.n_steps
            ratios.append(1 - bare / looped)
            print(f"bare {bare:.4f} s, in the loop {looped:.4f} s a step: {ratios[-1]:+.2%}", flush=True)
    print(f"overhead: median {statistics.median(ratios):+.2%}")


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
