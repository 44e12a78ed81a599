"""The infilling suite: HumanEval's three kinds of gaps, and spans of prose (evals.humaneval, evals.natural)."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upalm.checkpoints.folder import Checkpoint
from upalm.evals import benchmark_files
from upalm.evals.bootstrap import Estimate
from upalm.evals.infilling import humaneval, prose
from upalm.evals.task import TooShort
from upalm.inference.prompts import Mode

NAME = "infilling"


_PROSE = "nlp/lambada_openai.jsonl"


_TASKS = [*(f"humaneval_{kind.replace('-', '_')}" for kind in humaneval.FILES), "prose_1_span", "prose_3_spans"]


@dataclass(frozen=True)
class InfillingResult:
    """Of every task, its metrics."""

    estimates: Mapping[str, dict[str, Estimate]]
    lost: Mapping[str, dict[str, int]]
    """Rows left out, by reason."""
    not_run: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "suite": NAME,
            "tasks": {
                name: {"metrics": {k: e._asdict() for k, e in found.items()}, "left_out": self.lost[name]}
                for name, found in self.estimates.items()
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
    say: Callable[[str, int, int], None] | None = None,
) -> InfillingResult:
    """Evaluate the tasks whose files are in `folder`; finished ones in `out` are not done again.

    Raises:
        ValueError: there is none, rows that are not the benchmark's, or results of another evaluation in `out`.
    """
    estimates, lost, not_run = {}, {}, {}
    for number, name in enumerate(_TASKS):
        if say is not None:
            say(name, number, len(_TASKS))
        path, mine = out / f"{name}.json", {**fingerprint, "mode": mode, "limit": limit}
        if path.is_file():
            there = json.loads(path.read_text())
            if there["fingerprint"] != mine:
                raise ValueError(f"{path} is of another evaluation: choose another --out, or delete it.")
        else:
            try:
                found, left_out = _evaluate(name, checkpoint, folder, mode, limit)
            except (FileNotFoundError, TooShort) as e:
                not_run[name] = f"no {e}" if isinstance(e, FileNotFoundError) else str(e)
                continue
            there = {"fingerprint": mine, "left_out": left_out}
            there["metrics"] = {k: e._asdict() for k, e in found.items()}
            out.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(there, indent=1) + "\n")
        estimates[name] = {k: Estimate(**e) for k, e in there["metrics"].items()}
        lost[name] = there["left_out"]
    if not estimates:
        raise ValueError(f"nothing of suite {NAME} can be run on {folder}: {'; '.join(not_run.values())}.")
    return InfillingResult(estimates, lost, not_run)


def _evaluate(
    name: str, checkpoint: Checkpoint, folder: Path, mode: Mode, limit: int | None
) -> tuple[dict[str, Estimate], dict[str, int]]:
    model, tokenizer, info = checkpoint
    if name.startswith("humaneval"):
        kind = name.removeprefix("humaneval_").replace("_", "-")
        _need(folder, f"humaneval_infilling/{humaneval.FILES[kind]}")
        benchmark = humaneval.load(folder / "humaneval_infilling", kind)
        benchmark = benchmark._replace(rows=benchmark.rows[:limit])
        found = humaneval.evaluate(model, tokenizer, benchmark, mode=mode, inputs_eos=info.inputs_eos)
        return found.estimates, {"blank": found.n_blank, "too_long": found.n_too_long}
    _need(folder, _PROSE)
    texts = [row.text("text") for row in benchmark_files.read(folder / _PROSE)][:limit]
    cut, n_short = prose.cut_rows("lambada", texts, prose.Cut(int(name.split("_")[1])))
    estimates, n_too_long = prose.evaluate(model, tokenizer, cut, mode=mode, inputs_eos=info.inputs_eos)
    return estimates, {"too_short": n_short, "too_long": n_too_long}


def _need(folder: Path, file: str) -> None:
    if not (folder / file).is_file():
        raise FileNotFoundError(file)
