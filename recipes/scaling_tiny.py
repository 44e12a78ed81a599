"""The paper's scaling experiment at tiny size: two causal runs, forks from four checkpoints of each, three seeds.

Paper:    U-PaLM (arXiv:2210.11399) section 3, Figures 1 and 2, at a millionth of the size.
Command:  upalm run scaling_tiny
Hardware: 2 CPU cores, about an hour (64 minutes beside other work); after Ctrl-C the same command resumes.
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
from upalm.evals import suites
from upalm.evals.bootstrap import Estimate, ratio
from upalm.evals.infilling import gaps, scores
from upalm.evals.infilling.held_out import MODES, cut_gaps
from upalm.evals.savings import describe_checkpoint
from upalm.evals.savings_report import analyse, read_points
from upalm.evals.scorer import PromptFormat, Scorer
from upalm.evals.suites import run_suite, save_results
from upalm.evals.tasks import synthetic
from upalm.inference.config import Attention
from upalm.model.config import PALM
from upalm.model.palm import Decoder
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
    check_request(args)
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
    print(analyse(read_points([results]), args.out).format())
    print_summary(args, results)
    print(f"{time.monotonic() - started:.0f} s in all")


def check_request(args: ScalingTiny) -> None:
    """Record what checkpoints are measured on, or refuse a folder whose results were measured on something else."""
    path, request = (
        args.out / "measured_on.json",
        {"data": args.data, "rows": args.n_rows, "questions": args.n_questions},
    )
    if not path.is_file():
        args.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(request) + "\n")
    elif json.loads(path.read_text()) != request:
        raise ValueError(f"the results in {args.out} are of {path.read_text().strip()}: choose another --out.")


def evaluate(args: ScalingTiny, checkpoint: Path, files: Path, documents: list, place: Path) -> None:
    """Evaluate the synthetic suite in the format that suits the model, gaps, and text under both masks."""
    model, tokenizer, info = load_model(checkpoint)
    trained_mask = "prefix" if info.gaps_trained else "causal"
    scorer = Scorer(model, tokenizer, PromptFormat(attention=trained_mask))
    suite = run_suite(scorer, suites.find_suite("synthetic"), files, place)
    estimates = estimate_bits(args, model, tokenizer, documents, info.inputs_eos)
    measures = {name: e._asdict() | {"lower_is_better": True} for name, e in estimates.items()}
    results = describe_checkpoint(checkpoint, model, scorer) | suite.to_json() | {"measures": measures}
    save_results(place / "results.json", results)


def estimate_bits(
    args: ScalingTiny, model: Decoder, tokenizer: Tokenizer, documents: list, inputs_eos: bool
) -> dict[str, Estimate]:
    """Estimate bits per byte of gaps, and of the second halves of excerpts under either mask."""
    lines, _ = cut_gaps(documents, tokenizer, model.config.seq_len, args.n_rows, inputs_eos=True)
    by_mode = [scores.score_spans(model, tokenizer, lines, mode, inputs_eos).bits for mode in MODES]
    best = min(by_mode, key=lambda bits: bits.bits.sum())

    def fits(text: str) -> bool:
        return sum(len(tokenizer.encode(half)) for half in split_in_half(text)) <= model.config.seq_len

    halves = map(split_in_half, gaps.take_excerpts(documents, args.n_rows, fits))
    rows = [gaps.Gap((before, ""), (after,)) for before, after in halves]
    masks: tuple[Attention, ...] = ("causal", "prefix")
    continued = {mask: scores.score_left_only(model, tokenizer, rows, "none", mask) for mask in masks}
    return {
        "infill_bits_per_byte": ratio(*best),
        **{f"continue_{mask}_bits_per_byte": ratio(*bits) for mask, bits in continued.items()},
    }


def split_in_half(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


def print_summary(args: ScalingTiny, results: Path) -> None:
    """Print the differences between UL2R and the control, paired by start and seed."""
    contents = {p.parent.name: json.loads(p.read_text()) for p in sorted(results.glob("*/results.json"))}
    for size in SIZES:
        for measure in ("average", "infill_bits_per_byte", "continue_causal_bits_per_byte"):
            gains = [
                read_value(contents[f"{size}-ul2r_{start}_{seed}-steps-{args.n_steps}"], measure)
                - read_value(contents[f"{size}-control_{start}_{seed}-steps-{args.n_steps}"], measure)
                for start in args.starts
                for seed in range(args.n_seeds)
            ]
            error = np.std(gains, ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else float("nan")
            print(f"{size}: {measure}, UL2R minus control: {np.mean(gains):+.4f} ± {error:.4f} over {len(gains)} pairs")


def read_value(result: dict, measure: str) -> float:
    return result["average"]["mean"] if measure == "average" else result["measures"][measure]["mean"]


if __name__ == "__main__":
    main(recipes.parse(ScalingTiny, __doc__))
