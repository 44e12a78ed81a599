"""The scaling analysis (U-PaLM section 3): how much compute a causal run needs to score as its UL2R continuation does.

The causal curve is score against log FLOPs, made monotone (isotonic regression) and joined by straight lines. The
savings rate of a continuation is the FLOPs at which that curve reaches its score, over its own FLOPs, the start's
included. Where the curve never gets there, its last checkpoint gives a lower bound.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression

from upalm._version import __version__
from upalm.checkpoints.lineage import stages
from upalm.data.tokenizer import Tokenizer
from upalm.evals import paper_numbers
from upalm.evals.scorer import Scorer
from upalm.model.config import PALM
from upalm.model.palm import Decoder

Family = Literal["causal", "control", "ul2r"]


_DRAWS = 1000


class Point(NamedTuple):
    """A checkpoint that was evaluated."""

    n_params: int
    family: Family
    """`causal`: along the base run; `control`: a causal continuation of one of its checkpoints; `ul2r`: one by UL2R."""
    start_flops: float
    """Of the checkpoint that was continued; of the checkpoint itself along the base run."""
    flops: float
    """6ND, all stages together."""
    flops_with_attention: float
    """The same by 6N + 12LHQT."""
    seed: int
    """Of the last stage."""
    scores: Mapping[str, float]
    """By task; higher is better."""


def points_of(found: Sequence[Mapping[str, Any]], measure: str = "score") -> list[Point]:
    """Points from the contents of results.json files.

    Args:
        found: of one suite.
        measure: `score`, the tasks' headlines; or the name of one of `measures`, turned so that higher is better.

    Raises:
        ValueError: results of several suites, of tasks with more questions here than there, without their compute, or
            of a run that is none of the three families.
    """
    suites = sorted({r["suite"] for r in found})
    if len(suites) > 1:
        raise ValueError(f"these are results of several suites ({', '.join(suites)}): give those of one.")
    sizes: dict[str, dict[int | None, str]] = {}
    for r in found:
        for name, task in r["tasks"].items():
            sizes.setdefault(name, {}).setdefault(task.get("n"), r["checkpoint"])
    for name, by_size in sizes.items():
        if len(by_size) > 1:
            there = ", ".join(f"{n} questions ({where})" for n, where in by_size.items())
            raise ValueError(f"task {name} was not asked alike: {there}. Evaluate all on the same data and --limit.")
    return [_point(r, measure) for r in found]


def _point(result: Mapping[str, Any], measure: str) -> Point:
    where, compute = result["checkpoint"], result["compute"]
    led = compute["stages"]
    if led is None:
        raise ValueError(f"{where}: nothing says how much compute made it, so it has no place on the axis.")
    if len(led) > 2 or led[0]["mixture"] != "causal":
        mixtures = " -> ".join(stage["mixture"] for stage in led)
        raise ValueError(f"{where} was trained on {mixtures}: expected a causal run, or one continuation of it.")
    family: Family = "causal" if len(led) == 1 else "control" if led[1]["mixture"] == "causal" else "ul2r"
    per_token = 6.0 * compute["n_params"]
    if measure == "score":
        scores = {name: task["score"] for name, task in result["tasks"].items()}
    else:
        there = result.get("measures", {})
        if measure not in there:
            raise ValueError(f"{where} has no measure {measure!r}: there are {', '.join(there) or 'none'}.")
        sign = -1 if there[measure]["lower_is_better"] else 1
        scores = {measure: sign * there[measure]["mean"]}
    start, total = per_token * led[0]["n_tokens"], per_token * sum(stage["n_tokens"] for stage in led)
    with_attention = float(compute["flops_with_attention"])
    return Point(compute["n_params"], family, start, total, with_attention, led[-1]["seed"], scores)


def table_8() -> list[Point]:
    """PaLM 540B and U-PaLM 540B of the paper, by 6ND; UL2R of 1.31B tokens (20,000 steps of 32 x 2048)."""
    points, c = [], PALM["540b"]
    per_token = c.train_flops_per_token()
    for i, tokens in enumerate(paper_numbers.TABLE_8_TOKENS):
        n_tokens = (tokens, tokens + 20_000 * 32 * 2048)
        (start, total), with_attention = (6 * 540e9 * n for n in n_tokens), [per_token * n for n in n_tokens]
        before, after = ({task: row[j] for task, row in paper_numbers.TABLE_8.items()} for j in (i, i + 3))
        points.append(Point(c.n_params, "causal", start, start, with_attention[0], 0, before))
        points.append(Point(c.n_params, "ul2r", start, total, with_attention[1], 0, after))
    return points


def measures_of(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """`score`, and the measures that all results have."""
    return ["score", *sorted(set.intersection(*(set(r.get("measures", {})) for r in found)))]


# --- The curve ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """Score of the causal run by its FLOPs, monotone."""

    flops: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, flops: np.ndarray, scores: np.ndarray) -> "Curve":
        """Through checkpoints; those of equal FLOPs count together."""
        there = np.unique(flops)
        means = np.array([scores[flops == f].mean() for f in there])
        weights = np.array([float((flops == f).sum()) for f in there])
        return cls(there, np.asarray(isotonic_regression(means, weights=weights).x))

    def reaches(self, score: float) -> float:
        """The FLOPs at which the curve first has this score; infinite if it never does, 0 if it begins above."""
        if score > self.scores[-1]:
            return np.inf
        if score < self.scores[0]:
            return 0.0
        at = int(np.argmax(self.scores >= score))
        if at == 0:
            return float(self.flops[0])
        low, high = self.scores[at - 1], self.scores[at]
        share = (score - low) / (high - low)
        return float(np.exp(np.log(self.flops[at - 1]) * (1 - share) + np.log(self.flops[at]) * share))


class Saving(NamedTuple):
    """Of the continuations of one checkpoint, all seeds together."""

    n_params: int
    family: Family
    start_flops: float
    flops: float
    flops_with_attention: float
    n_seeds: int
    start_score: float
    score: float
    rate: float
    """FLOPs of the causal run over these, at this score; infinite where the causal run never gets there."""
    low: float
    """Lower end of the 95% interval over tasks and seeds."""
    high: float
    bound: float
    """FLOPs of the causal run's last checkpoint over these: the rate is at least that where it is infinite."""

    def __str__(self) -> str:
        if self.rate == 0:
            return "below the first checkpoint"
        rate = f"over {self.bound:.2f}x" if np.isinf(self.rate) else f"{self.rate:.2f}x"
        ends = [f"over {self.bound:.2f}" if np.isinf(x) else f"{x:.2f}" for x in (self.low, self.high)]
        return f"{rate} [{', '.join(ends)}]"


def savings(points: Sequence[Point], *, seed: int = 0) -> list[Saving]:
    """The savings rate of every continuation, by size and start, with intervals from drawing tasks and seeds again.

    Raises:
        ValueError: no causal run of a size, one of a single checkpoint, or points without a task in common.
    """
    tasks = common_tasks(points)
    found = []
    for n_params in sorted({p.n_params for p in points}):
        size = [p for p in points if p.n_params == n_params]
        base = [p for p in size if p.family == "causal"]
        if len({p.flops for p in base}) < 2:
            raise ValueError(f"a causal curve of {n_params:,} parameters takes two checkpoints, there are {len(base)}.")
        forks = {}
        for p in size:
            if p.family != "causal":
                forks.setdefault((p.start_flops, p.family), []).append(p)
        for (start, family), group in sorted(forks.items()):
            found.append(_saving(base, group, tasks, n_params, family, start, seed))
    return found


def common_tasks(points: Sequence[Point]) -> list[str]:
    """Those that every point has.

    Raises:
        ValueError: there is none.
    """
    tasks = sorted(set.intersection(*(set(p.scores) for p in points))) if points else []
    if not tasks:
        raise ValueError("the results have no task in common.")
    return tasks


def _saving(
    base: list[Point], group: list[Point], tasks: list[str], n_params: int, family: Family, start: float, seed: int
) -> Saving:
    on_curve, forked = _table(base, tasks), _table(group, tasks)
    curve_flops, flops = np.array([p.flops for p in base]), float(np.mean([p.flops for p in group]))

    def rate(rows: np.ndarray, columns: np.ndarray) -> float:
        curve = Curve.of(curve_flops, on_curve[:, columns].mean(1))
        return curve.reaches(float(forked[np.ix_(rows, columns)].mean())) / flops

    rng, (n_rows, n_tasks) = np.random.default_rng(seed), forked.shape
    draws = [rate(rng.integers(0, n_rows, n_rows), rng.integers(0, n_tasks, n_tasks)) for _ in range(_DRAWS)]
    low, high = np.quantile(draws, [0.025, 0.975], method="inverted_cdf")  # of values that may be infinite
    at_start = on_curve[np.isclose(curve_flops, start)]
    return Saving(
        *(n_params, family, start, flops, float(np.mean([p.flops_with_attention for p in group])), n_rows),
        start_score=float(at_start.mean()) if len(at_start) else float("nan"),
        score=float(forked.mean()),
        rate=rate(np.arange(n_rows), np.arange(n_tasks)),
        low=float(low),
        high=float(high),
        bound=float(curve_flops.max()) / flops,
    )


def _table(points: Sequence[Point], tasks: Sequence[str]) -> np.ndarray:
    return np.array([[p.scores[task] for task in tasks] for p in points])


def about(checkpoint: Path, model: Decoder, tokenizer: Tokenizer, answerer: Scorer) -> dict[str, Any]:
    """Whose results these are, and what compute made it."""
    c, led = model.config, stages(checkpoint)
    n_tokens = None if led is None else sum(stage.n_tokens for stage in led)
    per_token = c.train_flops_per_token()
    compute = {"n_params": c.n_params, "stages": None, "flops_6nd": None, "flops_with_attention": None}
    if led is not None and n_tokens is not None:
        compute |= {
            "stages": [stage._asdict() for stage in led],
            "flops_6nd": 6 * c.n_params * n_tokens,
            "flops_with_attention": per_token * n_tokens,
        }
    return {
        "upalm": __version__,
        "checkpoint": str(checkpoint),
        "fingerprint": answerer.fingerprint,
        "compute": compute,
    }
