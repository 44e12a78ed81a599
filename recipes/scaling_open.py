"""The paper's scaling experiment on checkpoints that you have: UL2R and a control from several stages of one model.

Paper:    U-PaLM (arXiv:2210.11399) section 3, Figures 1 and 2, of a model with published stages of its pretraining.
Command:  upalm import-hf STAGE1 --out models/stage1      (and so on: OLMo 2, SmolLM2 and Amber publish such stages)
          upalm run scaling_open --starts models/stage1:1e12 models/stage2:4e12 --data TEXT
          upalm run scaling_open --starts runs/base/steps/500 runs/base/steps/2000 --data TEXT      (a run of yours)
Hardware: what a fork of the model needs (recipe ul2r), and disk for one fork at a time; after Ctrl-C the same command
          resumes, and further starts and seeds are added to what is there.
Result:   OUT/report.html and scaling.png; results.json of every start and fork for `upalm scaling OUT`.
Expected: docs/results.md has six stages of the tiny base. No published family has been through this.
"""

import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from upalm.checkpoints.lineage import Stage
from upalm.data.config import DataConfig
from upalm.data.sources import TextSource
from upalm.data.tokens import spelling_problem
from upalm.evals.ladder import Measures, Start, load_held_out, open_starts
from upalm.evals.savings_report import analyse, read_points
from upalm.evals.suites import find_suite
from upalm.evals.tasks import synthetic
from upalm.training import recipes
from upalm.training.config import CheckpointConfig, Continue, TrainConfig
from upalm.training.launch import run_once
from upalm.training.optim import Adafactor, Schedule
from upalm.training.resume import check_folder

FORKS = {"control": "causal", "ul2r": "ul2r_infill"}


@dataclass(frozen=True)
class ScalingOpen:
    """Fork, evaluate, analyse."""

    starts: tuple[str, ...]
    """Checkpoints of one model, two or more: imports with the tokens that they were pretrained on
    (`models/stage1:2e12`), or steps of a run (`runs/base/steps/500`), whose tokens are known."""
    data: str
    """Text that the forks are trained on, as for `upalm data build`; its held-out tenth is measured."""
    out: Path = Path("runs/scaling_open")
    """Folder of all forks and results."""
    n_steps: int = 100
    """Steps of a fork."""
    batch_size: int = 8
    """Rows per batch."""
    seq_len: int = 256
    """Tokens per row of training, gaps and excerpts; no more than the checkpoints' rows have."""
    peak: float = 2e-3
    """Learning rate of the forks, relative to the RMS of each parameter; it falls to a hundredth."""
    n_seeds: int = 3
    """Forks of each kind from each start."""
    n_rows: int = 96
    """Held-out gaps, and excerpts."""
    suite: str = "synthetic"
    """Few-shot suite (docs/evals.md). That of the paper's Figure 1 is english26; synthetic needs no files."""
    bench: Path | None = None
    """Folder with the files of another suite than synthetic, as `upalm eval fetch` makes it."""
    n_questions: int = 400
    """First questions of each task."""
    keep_weights: bool = False
    """Keep the checkpoint of every fork. Without this it is deleted once the fork is measured."""

    def __post_init__(self):
        for name in ("n_seeds", "n_rows", "n_questions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1.")
        if self.suite != "synthetic" and self.bench is None:
            raise ValueError(f"suite {self.suite} needs the folder of its files: give --bench.")
        if self.suite == "synthetic" and self.bench is not None:
            raise ValueError(f"suite synthetic makes its own files: leave --bench {self.bench} out, or give --suite.")

    def fork(self, start: Start, kind: str, seed: int) -> TrainConfig:
        """A continuation of a start."""
        return TrainConfig(
            out=self.out / f"{kind}_{start.n_tokens}_{seed}",
            start=Continue(start.folder),
            data=DataConfig(
                self.data, FORKS[kind], seq_len=self.seq_len, batch_size=self.batch_size, joint_budget=True
            ),
            optimizer=Adafactor(Schedule("cosine", peak=self.peak, final=self.peak / 100), decay=False),
            n_steps=self.n_steps,
            save_every=self.n_steps,
            eval_every=self.n_steps,
            checkpoints=CheckpointConfig(minutes=15.0, last=1),
            seed=seed + 1,  # other data order and noise than those of a base with seed 0
        )

    def fork_tokens(self) -> int:
        """Tokens that a fork is trained on."""
        return self.n_steps * self.batch_size * self.seq_len


def main(args: ScalingOpen) -> None:
    started = time.monotonic()
    starts = open_starts(args.starts, args.seq_len)
    forks = [
        (start, kind, args.fork(start, kind, seed))
        for seed in range(args.n_seeds)
        for start in starts
        for kind in FORKS
    ]
    measures = prepare_measures(args, starts)
    for *_, config in forks:  # before anything is trained
        check_folder(config)
    results = []
    for start in starts:
        share = args.fork_tokens() / start.n_tokens
        print(f"{start.folder}: {start.n_tokens:,} tokens; a fork adds {share:.2g} times as many", flush=True)
        results.append(measures.evaluate(start.folder, args.out / "results" / f"start_{start.n_tokens}", start.stages))
    for i, (start, kind, config) in enumerate(forks):
        place = args.out / "results" / config.out.name
        if not (place / "results.json").is_file():
            print(f"\nfork {i + 1} of {len(forks)}, {config.out.name}", flush=True)
            stages = [*start.stages, Stage(FORKS[kind], args.fork_tokens(), config.seed)]
            measures.evaluate(run_once(config), place, stages)
            if not args.keep_weights:
                shutil.rmtree(config.out / "steps")
        results.append(place / "results.json")
    print(analyse(read_points(results), args.out).format())
    print(f"{time.monotonic() - started:.0f} s in all")


def prepare_measures(args: ScalingOpen, starts: list[Start]) -> Measures:
    """Read the held-out text and find the suite's files, refusing what does not fit."""
    text = TextSource(args.data)
    files = args.bench or args.out / "questions"
    documents = load_held_out(text, partial(spelling_problem, starts[0].tokenizer))
    measures = Measures(documents, find_suite(args.suite), files, args.n_questions, args.n_rows, args.seq_len)
    for note in text.notes():
        print(note)
    measures.check_rows(starts[0].tokenizer)
    measures.check_folder(args.out)
    if args.bench is None:
        synthetic.write(files, args.n_questions)
    return measures


if __name__ == "__main__":
    main(recipes.parse(ScalingOpen, __doc__))
