"""The infilling suite: HumanEval's three kinds of gaps, and spans of prose."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upalm.checkpoints.folder import Checkpoint
from upalm.evals.benchmark_files import parse_json, read
from upalm.evals.bootstrap import Estimate, to_json
from upalm.evals.infilling import humaneval, prose
from upalm.evals.task import RowsTooShort
from upalm.files import sha256_file, write_atomically
from upalm.inference.config import GenerationConfig, Mode

NAME = "infilling"
_PROSE = "nlp/lambada_openai.jsonl"
_KINDS = {f"humaneval_{kind.replace('-', '_')}": kind for kind in humaneval.FILES}
_TASKS = {name: f"humaneval_infilling/{humaneval.FILES[kind]}" for name, kind in _KINDS.items()}
_TASKS |= {"prose_1_span": _PROSE, "prose_3_spans": _PROSE}
"""File of each task, below the data folder."""


@dataclass(frozen=True)
class InfillingResult:
    """Metrics of every task."""

    estimates: Mapping[str, dict[str, Estimate]]
    n_left_out: Mapping[str, dict[str, int]]
    """Rows left out, by reason."""
    not_run: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for results.json."""
        return {
            "suite": NAME,
            "tasks": {
                name: {"metrics": to_json(metrics), "left_out": self.n_left_out[name]}
                for name, metrics in self.estimates.items()
            },
            "not_run": dict(self.not_run),
        }


def run(
    checkpoint: Checkpoint,
    folder: Path,
    out: Path,
    mode: Mode,
    fingerprint: Mapping[str, Any],
    limit: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> InfillingResult:
    """Evaluate the tasks whose files are in `folder`. Tasks with results in `out` are not run again.

    Args:
        checkpoint: model, tokenizer and what they were trained on.
        folder: the benchmark files.
        out: one JSON file of results per task.
        mode: mode token of the prompts.
        fingerprint: identity of the model.
        limit: rows of each task; None takes all.
        progress: receives the current task, the number of finished tasks, and the number of all tasks.

    Raises:
        ValueError: no task can be run, rows of another format, or results in `out` that are damaged or of another
            evaluation.
    """
    estimates, n_left_out, not_run = {}, {}, {}
    for number, name in enumerate(_TASKS):
        if progress is not None:
            progress(name, number, len(_TASKS))
        path, file = out / f"{name}.json", folder / _TASKS[name]
        if not file.is_file():
            not_run[name] = f"no {_TASKS[name]}"
            continue
        how = {"mode": mode, "heal": GenerationConfig().heal, "limit": limit}
        identity = {**fingerprint, **how, "data": sha256_file(file)}
        if path.is_file():
            estimates[name], n_left_out[name] = _load(path, identity)
        else:
            try:
                estimates[name], n_left_out[name] = _evaluate(name, checkpoint, folder, mode, limit)
            except RowsTooShort as e:
                not_run[name] = str(e)
                continue
            record = {"fingerprint": identity, "left_out": n_left_out[name], "metrics": to_json(estimates[name])}
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(record, indent=1) + "\n")
    if not estimates:
        raise ValueError(f"no task of suite {NAME} can be run on {folder}: {'; '.join(not_run.values())}.")
    return InfillingResult(estimates, n_left_out, not_run)


def _load(path: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Estimate], dict[str, int]]:
    """Read the results of a finished task."""
    record = parse_json(path.read_bytes(), str(path))
    try:
        recorded, n_left_out = record["fingerprint"], record["left_out"]
        estimates = {name: Estimate(**estimate) for name, estimate in record["metrics"].items()}
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{path} is damaged or of another version: delete it to run the task again.") from e
    if recorded != identity:
        raise ValueError(f"{path} holds results of another evaluation: choose another --out, or delete it.")
    return estimates, n_left_out


def _evaluate(
    name: str, checkpoint: Checkpoint, folder: Path, mode: Mode, limit: int | None
) -> tuple[dict[str, Estimate], dict[str, int]]:
    model, tokenizer, info = checkpoint
    if name in _KINDS:
        benchmark = humaneval.load(folder / "humaneval_infilling", _KINDS[name])
        benchmark = benchmark._replace(rows=benchmark.rows[:limit])
        result = humaneval.evaluate(model, tokenizer, benchmark, mode=mode, inputs_eos=info.inputs_eos)
        return result.estimates, {"blank": result.n_blank, "too_long": result.n_too_long}
    texts = [row.text("text") for row in read(folder / _PROSE)][:limit]
    rows, n_short = prose.cut_rows("lambada", texts, prose.Cut(int(name.split("_")[1])))
    estimates, n_too_long = prose.evaluate(model, tokenizer, rows, mode=mode, inputs_eos=info.inputs_eos)
    return estimates, {"too_short": n_short, "too_long": n_too_long}


def list_files() -> list[str]:
    """List the files of the suite, below the data folder."""
    return list(dict.fromkeys(_TASKS.values()))
