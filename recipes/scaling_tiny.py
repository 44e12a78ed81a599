"""The paper's scaling experiment at tiny size: two causal runs, forks from four checkpoints of each, three seeds.

Paper:    U-PaLM (arXiv:2210.11399) section 3, Figures 1 and 2, at a millionth of the size.
Command:  upalm run scaling_tiny
Hardware: 2 CPU cores, about an hour (64 minutes beside other work); after Ctrl-C the same command resumes.
Result:   OUT/report.html and scaling.png; results.json of every checkpoint for `upalm scaling OUT`.
Expected: docs/results.md. The paper has nothing below 8B parameters: a null result is a result.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from upalm.checkpoints.folder import open_checkpoint
from upalm.data.config import DataConfig
from upalm.data.sources import STDLIB, TextSource
from upalm.evals.ladder import Measures, load_held_out
from upalm.evals.savings_report import analyse, read_points
from upalm.evals.suites import find_suite
from upalm.evals.tasks import synthetic
from upalm.model.config import PALM
from upalm.training import recipes
from upalm.training.config import CheckpointConfig, Continue, Scratch, TrainConfig
from upalm.training.launch import run, run_once
from upalm.training.optim import Adafactor, Schedule
from upalm.training.progress import Bar

SIZES = {"nano": replace(PALM["tiny"], d_model=64, n_layers=3, d_head=32, d_ff=256), "tiny": PALM["tiny"]}
FORKS = {"control": "causal", "ul2r": "ul2r_eos"}
PRETRAINING = Adafactor(Schedule("rsqrt", peak=1e-2, warm_steps=1000), decay=False)
FORKING = Adafactor(Schedule("cosine", peak=5e-3, final=1e-4), decay=False)


@dataclass(frozen=True)
class ScalingTiny:
    """Pretrain, fork, evaluate, analyse."""

    out: Path = Path("runs/scaling_tiny")
    """Folder of all runs and results."""
    data: str = STDLIB
    """Text, as for `upalm data build`."""
    starts: tuple[int, ...] = (500, 1000, 2000, 4000)
    """Steps of the causal runs at which they are forked; the last is their end. All multiples of the greatest common
    divisor are checkpoints, and evaluated."""
    n_steps: int = 100
    """Steps of a fork."""
    n_seeds: int = 3
    """Forks of each kind from each checkpoint."""
    batch_size: int = 8
    """Rows of 256 tokens."""
    n_rows: int = 96
    """Held-out gaps, and excerpts."""
    n_questions: int = 400
    """Questions of each synthetic task."""

    def __post_init__(self):
        for name in ("n_steps", "n_seeds", "n_rows", "n_questions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1.")
        if len(self.starts) < 2 or len(set(self.starts)) < len(self.starts) or min(self.starts) < 1:
            raise ValueError(
                f"starts is {self.starts}, expected two or more different numbers of steps, as a curve needs, each at "
                "least 1."
            )

    def pretraining(self, size: str) -> TrainConfig:
        """The causal run, which keeps its checkpoints."""
        every = int(np.gcd.reduce(self.starts))
        return TrainConfig(
            out=self.out / size / "causal",
            start=Scratch(SIZES[size]),
            data=DataConfig(self.data, "causal", seq_len=256, batch_size=self.batch_size),
            optimizer=PRETRAINING,
            n_steps=max(self.starts),
            save_every=every,
            eval_every=every,
            checkpoints=CheckpointConfig(every=every),
        )

    def fork(self, size: str, start: int, kind: str, seed: int) -> TrainConfig:
        """A continuation of the causal run's checkpoint after `start` steps."""
        base = self.pretraining(size)
        return replace(
            base,
            out=self.out / size / f"{kind}_{start}_{seed}",
            start=Continue(base.out / "steps" / str(start)),
            data=replace(base.data, mixture=FORKS[kind], joint_budget=True),
            optimizer=FORKING,
            n_steps=self.n_steps,
            save_every=self.n_steps,
            eval_every=self.n_steps,
            checkpoints=CheckpointConfig(last=1),
            seed=seed + 1,  # other data order and noise than the base's
        )


def main(args: ScalingTiny) -> None:
    started = time.monotonic()
    files = args.out / "questions"
    documents = load_held_out(TextSource(args.data))
    measures = Measures(documents, find_suite("synthetic"), files, args.n_questions, args.n_rows, seq_len=256)
    measures.check_folder(args.out)
    synthetic.write(files, args.n_questions)
    checkpoints = []
    for size in SIZES:
        base = run(args.pretraining(size))
        checkpoints += sorted((base / "steps").glob("[0-9]*"), key=lambda p: int(p.name))
        measures.check_rows(open_checkpoint(base)[1])  # before anything is forked
        forks = [
            args.fork(size, start, kind, seed)
            for seed in range(args.n_seeds)
            for start in args.starts
            for kind in FORKS
        ]
        for i, config in enumerate(forks):
            print(f"\n{size}: fork {i + 1} of {len(forks)}, {config.out.name}", flush=True)
            checkpoints.append(run_once(config))
    results = []
    with Bar("evaluate", len(checkpoints)) as bar:
        for i, checkpoint in enumerate(checkpoints):
            results.append(measures.evaluate(checkpoint, args.out / "results" / "-".join(checkpoint.parts[-4:])))
            bar.update(i + 1)
    print(analyse(read_points(results), args.out).format())
    print(f"{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main(recipes.parse(ScalingTiny, __doc__))
