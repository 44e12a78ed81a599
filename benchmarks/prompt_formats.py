"""Score checkpoints of one shape on a slice of a suite, under several prompt formats.

    python benchmarks/prompt_formats.py --data bench/ --suite english26 --limit 200 --json english.json \\
        --checkpoints base=models/smollm2 ul2r=runs/ul2r_smollm2 --formats prefix,none prefix,s2s causal,none
    python benchmarks/prompt_formats.py --data bench/ --suite infilling --tasks single-line random-span \\
        --checkpoints ul2r=runs/ul2r_smollm2 --formats prefix,nlu prefix,nlg --json humaneval.json

The measures are those of `upalm eval --suite`; all checkpoints share one process, so that programs compile once. Beside
the measures of a suite's task the file has `by_question`, the headline of each question, for comparisons in pairs.
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import tyro

from upalm.checkpoints.folder import Checkpoint, load_model
from upalm.distributed.runtime import enable_compilation_cache
from upalm.evals import suites
from upalm.evals.bootstrap import to_json
from upalm.evals.infilling import humaneval
from upalm.evals.infilling.suite import NAME as INFILLING
from upalm.evals.runner import score_records
from upalm.evals.scorer import PromptFormat, Scorer
from upalm.evals.task import Task
from upalm.files import write_atomically
from upalm.inference.config import Attention, Mode
from upalm.training.progress import Bar


@dataclass(frozen=True)
class Case:
    """Checkpoints, questions and formats."""

    checkpoints: tuple[str, ...]
    """NAME=FOLDER of each."""
    data: Path
    """Folder of the benchmark files."""
    json: Path
    """File for the numbers."""
    suite: str = "english26"
    """Name of a suite; infilling is HumanEval's."""
    tasks: tuple[str, ...] = ()
    """These tasks only; of infilling, single-line, multi-line and random-span."""
    formats: tuple[str, ...] = ("prefix,none",)
    """ATTENTION,MODE of each prompt format."""
    limit: int = 200
    """Questions of each task: the first ones; of infilling, evenly spaced ones."""
    records: Path | None = None
    """Folder that keeps the answers to a suite, so that the same command goes on where it was stopped."""


def parse_format(text: str) -> tuple[Attention, Mode]:
    """Read `prefix,s2s`."""
    formats = {f"{attention},{mode}": (attention, mode) for attention in get_args(Attention) for mode in get_args(Mode)}
    if text not in formats:
        raise ValueError(f"format {text!r}: expected one of {' '.join(formats)}.")
    return formats[text]


def run_suite(args: Case, name: str, checkpoint: Checkpoint, attention: Attention, mode: Mode) -> dict[str, Any]:
    """Score the questions of a suite's tasks that have files."""
    suite = suites.find_suite(args.suite).select(args.tasks)
    scorer = Scorer(checkpoint.model, checkpoint.tokenizer, PromptFormat(attention, mode))
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.records / f"{name}_{attention}_{mode}" if args.records is not None else Path(temporary)
        with Bar(f"{name}, {attention}, {mode}", 1) as bar:

            def report(task: str, n: int, n_all: int) -> None:
                bar.set_total(n, n_all, task)

            found = suites.run_suite(scorer, suite, args.data, folder, limit=args.limit, progress=report).results
        return {
            task.name: {
                "metrics": to_json(found[task.name].estimates),
                "chance": found[task.name].chance,
                "n_shots": found[task.name].n_shots,
                "by_question": score_questions(args, task, folder),
            }
            for task in suite.tasks
            if task.name in found
        }


def score_questions(args: Case, task: Task, folder: Path) -> list[float]:
    """Compute the headline of each question alone from its record."""
    questions = task.load(args.data, args.limit).questions
    _, *lines = (folder / f"{task.name}.jsonl").read_text("utf-8").splitlines()  # the first names the evaluation
    records = sorted(map(json.loads, lines), key=lambda record: record["i"])
    alone = (score_records(task, [q], [record])[0] for q, record in zip(questions, records, strict=True))
    return [next(iter(estimates.values())).mean for estimates in alone]


def run_infilling(args: Case, checkpoint: Checkpoint, attention: Attention, mode: Mode) -> dict[str, Any]:
    """Fill gaps of HumanEval."""
    if attention != "prefix":
        raise ValueError(f"format {attention},{mode}: gaps are filled under prefix attention.")
    model, tokenizer, info = checkpoint
    found = {}
    for kind in args.tasks or humaneval.FILES:
        benchmark = humaneval.load(args.data / "humaneval_infilling", kind)
        spacing = max(1, len(benchmark.rows) // args.limit)
        benchmark = benchmark._replace(rows=benchmark.rows[::spacing][: args.limit])
        result = humaneval.evaluate(model, tokenizer, benchmark, mode=mode, inputs_eos=info.inputs_eos)
        found[f"humaneval {kind}"] = {"metrics": to_json(result.estimates), "n_too_long": result.n_too_long}
    return found


def main(args: Case) -> None:
    formats = [parse_format(text) for text in args.formats]
    enable_compilation_cache()
    results: dict[str, Any] = {}
    for pair in args.checkpoints:
        name, _, folder = pair.partition("=")
        checkpoint = load_model(folder)
        for attention, mode in formats:
            started = time.monotonic()
            if args.suite == INFILLING:
                scores = run_infilling(args, checkpoint, attention, mode)
            else:
                scores = run_suite(args, name, checkpoint, attention, mode)
            results.setdefault(name, {})[f"{attention}, {mode}"] = scores
            first = {task: next(iter(score["metrics"].values()))["mean"] for task, score in scores.items()}
            shown = " ".join(f"{task} {mean:.3f}" for task, mean in first.items())
            print(f"{name}, {attention}, {mode}: {shown}, {time.monotonic() - started:.0f} s", flush=True)
            write_atomically(args.json, json.dumps(results, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
