"""The paper's scaling experiment at tiny size: two causal runs, forks from four checkpoints of each, three seeds.

Paper:    U-PaLM (arXiv:2210.11399) section 3, Figures 1 and 2, at a millionth of the size.
Command:  upalm run scaling_tiny
Hardware: 2 CPU cores, about an hour (64 minutes beside other work); Ctrl-C and the same command goes on.
Result:   OUT/report.html and scaling.png; results.json of every checkpoint for `upalm scaling OUT`.
Expected: docs/results.md. The paper has nothing below 8B parameters: a null result is a result.
"""

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from upalm.checkpoints.folder import load_model
from upalm.data import sources
from upalm.data.config import DataConfig
from upalm.data.sources import STDLIB
from upalm.data.tokenizer import Tokenizer
from upalm.evals import savings_report, suites
from upalm.evals.bootstrap import Estimate, ratio
from upalm.evals.infilling import gaps as gaps_module
from upalm.evals.infilling import scores
from upalm.evals.infilling.held_out import cut_gaps
from upalm.evals.savings import about
from upalm.evals.scorer import PromptFormat, Scorer
from upalm.evals.suites import run_suite, save
from upalm.evals.tasks import synthetic
from upalm.inference.decoding import Attention
from upalm.model.config import PALM
from upalm.model.palm import Decoder
from upalm.terminal import console
from upalm.training import recipes
from upalm.training.config import CheckpointConfig, Continue, Scratch, TrainConfig
from upalm.training.launch import run
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

    def pretraining(self, size: str) -> TrainConfig:
        """The causal run; its checkpoints stay."""
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
    synthetic.write(files, args.n_questions)
    documents = sources.load(args.data).validation
    checkpoints = []
    for size in SIZES:
        base = run(args.pretraining(size))
        checkpoints += sorted((base / "steps").glob("[0-9]*"), key=lambda p: int(p.name))
        forks = [
            args.fork(size, start, kind, seed)
            for seed in range(args.n_seeds)
            for start in args.starts
            for kind in FORKS
        ]
        for i, config in enumerate(forks):
            print(f"\n{size}: fork {i + 1} of {len(forks)}, {config.out.name}", flush=True)
            if not (config.out / "steps" / str(args.n_steps)).is_dir():
                run(config)
            checkpoints.append(config.out / "steps" / str(args.n_steps))
    results = args.out / "results"
    with Bar("evaluate", len(checkpoints)) as bar:
        for i, checkpoint in enumerate(checkpoints):
            place = results / "-".join(checkpoint.parts[-4:])
            if not (place / "results.json").is_file():
                shutil.rmtree(place, ignore_errors=True)
                evaluate(args, checkpoint, files, documents, place)
            bar.update(i + 1)
    for table in savings_report.write(savings_report.read_results([results]), args.out):
        console().print(table)
    summary(args, results)
    print(f"{time.monotonic() - started:.0f} s in all")


def evaluate(args: ScalingTiny, checkpoint: Path, files: Path, documents: list, place: Path) -> None:
    """The synthetic suite, asked in the form that suits the model; gaps; and text left to right under both masks."""
    model, tokenizer, info = load_model(checkpoint)
    learnt = "prefix" if info.gaps_trained else "causal"  # the mask that the model was trained with
    answerer = Scorer(model, tokenizer, PromptFormat(attention=learnt))
    suite = run_suite(answerer, suites.find("synthetic"), files, place)
    measures = {
        name: e._asdict() | {"lower_is_better": True}
        for name, e in bits(args, model, tokenizer, documents, info.inputs_eos)
    }
    save(
        place / "results.json", about(checkpoint, model, tokenizer, answerer) | suite.to_json() | {"measures": measures}
    )


def bits(
    args: ScalingTiny, model: Decoder, tokenizer: Tokenizer, documents: list, inputs_eos: bool
) -> list[tuple[str, Estimate]]:
    """Bits a byte of gaps, and of the second halves of excerpts under either mask."""
    lines, _ = cut_gaps(documents, tokenizer, model.config.seq_len, args.n_rows, inputs_eos=True)
    gaps = min(
        (scores.score_spans(model, tokenizer, lines, mode, inputs_eos).bits for mode in ("none", "nlu", "nlg")),
        key=lambda b: b.bits.sum(),
    )

    def fits(x: str) -> bool:
        return sum(len(tokenizer.encode(half)) for half in in_halves(x)) <= model.config.seq_len

    excerpts = gaps_module.excerpts(documents, args.n_rows, fits)
    halves = [gaps_module.Gap((before, ""), (after,)) for before, after in map(in_halves, excerpts)]
    masks: tuple[Attention, ...] = ("causal", "prefix")
    return [
        ("infill_bits_per_byte", ratio(*gaps)),
        *(
            (f"continue_{mask}_bits_per_byte", ratio(*scores.left_only_bits(model, tokenizer, halves, "none", mask)))
            for mask in masks
        ),
    ]


def in_halves(x: str) -> tuple[str, str]:
    return x[: len(x) // 2], x[len(x) // 2 :]


def summary(args: ScalingTiny, results: Path) -> None:
    """Continuations beside the control, paired by start and seed."""
    found = {p.parent.name: json.loads(p.read_text()) for p in sorted(results.glob("*/results.json"))}
    for size in SIZES:
        for measure in ("average", "infill_bits_per_byte", "continue_causal_bits_per_byte"):
            gains = [
                value(found[f"{size}-ul2r_{start}_{seed}-steps-{args.n_steps}"], measure)
                - value(found[f"{size}-control_{start}_{seed}-steps-{args.n_steps}"], measure)
                for start in args.starts
                for seed in range(args.n_seeds)
            ]
            error = np.std(gains, ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else float("nan")
            print(f"{size}: {measure}, UL2R minus control: {np.mean(gains):+.4f} ± {error:.4f} over {len(gains)} pairs")


def value(result: dict, measure: str) -> float:
    return result["average"]["mean"] if measure == "average" else result["measures"][measure]["mean"]


if __name__ == "__main__":
    main(recipes.parse(ScalingTiny, __doc__))
