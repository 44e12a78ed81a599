"""Cost of the loop around a training step: data, metrics and bookkeeping, as a share of the step.

    python benchmarks/host_overhead.py --size small

In turns: a short run of `fit`, whose metrics say how long its steps took, and as many steps on one batch that
is already on the device. The share is 1 - bare / loop.
"""

import argparse
import inspect
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import tyro

from upalm.data.config import DataConfig
from upalm.data.loader import Loader
from upalm.data.readers import Document
from upalm.data.tokenizer import SentencePiece
from upalm.data.tokens import encode
from upalm.model.config import PALM
from upalm.model.palm import Decoder
from upalm.training.config import Scratch, TrainConfig
from upalm.training.loop import fit
from upalm.training.optim import Adafactor
from upalm.training.step import TrainState, microbatched, train_step


@dataclass(frozen=True)
class Case:
    size: Literal["tiny", "small"] = "small"
    batch: int = 4
    seq: int = 512
    n_steps: int = 6
    rounds: int = 3


def main(case: Case) -> None:
    text = inspect.getsource(argparse) * 4
    tokenizer = SentencePiece.train([text], 512)
    tokens = encode(tokenizer, [Document("argparse.py", text)])
    config = TrainConfig(
        out=Path("unused"),
        start=Scratch(replace(PALM[case.size], seq_len=case.seq)),
        data=DataConfig(seq_len=case.seq, batch_size=case.batch),
        optimizer=Adafactor(),
        n_steps=case.n_steps + 2,  # the first compiles, the last saves
        save_every=10_000,
        eval_every=10_000,
        log_every=1,
    )
    model = Decoder(config.start.model, key=jax.random.key(0))
    loader = Loader(tokens, config.data, tokenizer.symbols, seed=0)
    batches = jax.tree.map(jax.numpy.asarray, microbatched(loader.batch(0), 1))
    optimizer, ratios = config.optimizer.build(config.n_steps), []

    def bare_seconds() -> float:
        state = TrainState(jax.tree.map(jax.numpy.copy, model), optimizer.init(model))
        for step in range(case.n_steps + 1):
            if step == 1:  # the first compiles
                jax.block_until_ready(state)
                started = time.perf_counter()
            state, _ = train_step(state, batches, optimizer=optimizer, n_denoisers=len(loader.segmenters))
        jax.block_until_ready(state)
        return (time.perf_counter() - started) / case.n_steps

    def looped_seconds(folder: Path) -> float:
        fit(replace(config, out=folder), model, tokenizer, tokens, tokens)
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        rate = next(row["tokens_per_second"] for row in rows if row["step"] == config.n_steps - 1)
        return case.batch * case.seq / rate

    for _ in range(case.rounds):
        with tempfile.TemporaryDirectory() as folder:
            bare, looped = bare_seconds(), looped_seconds(Path(folder) / "run")
        ratios.append(1 - bare / looped)
        print(f"bare {bare:.4f} s, in the loop {looped:.4f} s per step: {ratios[-1]:+.2%}", flush=True)
    print(f"overhead: median {statistics.median(ratios):+.2%}")


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
