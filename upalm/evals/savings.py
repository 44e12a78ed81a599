"""Scaling analysis (U-PaLM section 3): the compute that a causal run needs to match its UL2R continuation.

The causal curve is the score against log FLOPs, made monotone (isotonic regression) and joined by straight lines. The
savings rate of a continuation is the FLOPs at which that curve reaches its score, over its own FLOPs, those of its
start included. Where the curve never gets there, its last checkpoint gives a lower bound.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression

from upalm._version import __version__
from upalm.checkpoints import lineage
from upalm.checkpoints.config_json import description
from upalm.evals import paper_numbers
from upalm.evals.scorer import Scorer
from upalm.model.config import PALM
from upalm.model.palm import Decoder
from upalm.spelling import suggest

Family = Literal["causal", "control", "ul2r"]
"""Kind of run: causal alone, continued causally (`control`), or continued with a mixture of denoisers."""

_DRAWS = 1000


class Point(NamedTuple):
    """An evaluated checkpoint."""

    n_params: int
    family: Family
    """`causal`: on the base run; `control` and `ul2r`: a continuation of one of its checkpoints."""
    mixture: str
    """Mixture of the last stage."""
    start_flops: float
    """6ND of the checkpoint that was continued; on the base run, of the checkpoint itself."""
    flops: float
    """6ND of all stages together."""
    flops_with_attention: float
    """FLOPs of all stages with 6N + 12LHQT per token."""
    seed: int
    """Seed of the last stage."""
    scores: Mapping[str, float]
    """Score by task; higher is better."""


def build_points(results: Sequence[Mapping[str, Any]], measure: str = "score") -> list[Point]:
    """Build points from the contents of results.json files.

    Args:
        results: results of one suite.
        measure: `score` for the tasks' headlines; or one of `measures`, whose sign is turned if lower is better.

    Raises:
        ValueError: results of several suites or another version, of tasks with different numbers of questions, without
            their compute, or of a run that is none of the three families.
    """
    if measure == "score":
        _check_alike(results)
    points = []
    for result in results:
        try:
            points.append(_build_point(result, measure))
        except (KeyError, TypeError, AttributeError, IndexError) as e:
            raise ValueError(
                f"the results of {result.get('checkpoint')} are damaged or of another version ({e!r}): evaluate again."
            ) from e
    return points


def _check_alike(results: Sequence[Mapping[str, Any]]) -> None:
    suites = sorted({str(r["suite"]) for r in results})
    if len(suites) > 1:
        raise ValueError(f"these are results of several suites ({', '.join(suites)}): give those of one.")
    sizes: dict[str, dict[int | None, str]] = {}
    for r in results:
        for name, task in r["tasks"].items():
            sizes.setdefault(name, {}).setdefault(task.get("n"), r["checkpoint"])
    for name, by_size in sizes.items():
        if len(by_size) > 1:
            versions = ", ".join(f"{n} questions ({checkpoint})" for n, checkpoint in by_size.items())
            raise ValueError(
                f"task {name} has different questions: {versions}. Evaluate all on the same data and --limit."
            )


def _build_point(result: Mapping[str, Any], measure: str) -> Point:
    checkpoint, compute = result["checkpoint"], result["compute"]
    stages = compute["stages"]
    if stages is None:
        raise ValueError(f"{checkpoint}: its compute is not known, so it has no place on the axis.")
    if len(stages) not in (1, 2) or stages[0]["mixture"] != "causal":
        mixtures = " -> ".join(str(stage["mixture"]) for stage in stages)
        raise ValueError(f"{checkpoint} was trained on {mixtures}: expected a causal run, or one continuation of it.")
    family: Family = "causal" if len(stages) == 1 else "control" if stages[1]["mixture"] == "causal" else "ul2r"
    if measure == "score":
        scores = {name: task["score"] for name, task in result["tasks"].items()}
    else:
        measures = result.get("measures", {})
        if measure not in measures:
            raise ValueError(f"{checkpoint} has no measure {measure!r}: {suggest(measure, measures, 'it has none.')}")
        sign = -1 if measures[measure]["lower_is_better"] else 1
        scores = {measure: sign * measures[measure]["mean"]}
    for name, score in scores.items():
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise ValueError(f"{checkpoint}: the score of {name} is {score!r}, expected a finite number.")
    per_token = 6.0 * compute["n_params"]
    start, total = per_token * stages[0]["n_tokens"], per_token * sum(stage["n_tokens"] for stage in stages)
    if not 0 < start <= total:
        raise ValueError(f"{checkpoint}: its compute is {total} FLOPs from a start of {start}, expected more than 0.")
    with_attention = float(compute["flops_with_attention"])
    mixture, seed = stages[-1]["mixture"], stages[-1]["seed"]
    return Point(compute["n_params"], family, mixture, start, total, with_attention, seed, scores)


def build_paper_points() -> list[Point]:
    """Build the points of Table 8: PaLM 540B, and U-PaLM 540B after 1.31B tokens of UL2R (20,000 steps)."""
    points, c = [], PALM["540b"]
    per_token = c.train_flops_per_token()
    for i, tokens in enumerate(paper_numbers.TABLE_8_TOKENS):
        n_tokens = (tokens, tokens + 20_000 * 32 * 2048)
        (start, total), with_attention = (6 * 540e9 * n for n in n_tokens), [per_token * n for n in n_tokens]
        before, after = ({task: row[j] for task, row in paper_numbers.TABLE_8.items()} for j in (i, i + 3))
        points.append(Point(c.n_params, "causal", "causal", start, start, with_attention[0], 0, before))
        points.append(Point(c.n_params, "ul2r", "ul2r", start, total, with_attention[1], 0, after))
    return points


def list_measures(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """List `score`, and the measures that all results have."""
    return ["score", *sorted(set.intersection(*(set(r.get("measures", {})) for r in results)))]


# --- The curve ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """Monotone score of the causal run against its FLOPs."""

    flops: np.ndarray
    scores: np.ndarray

    @classmethod
    def fit(cls, flops: np.ndarray, scores: np.ndarray) -> "Curve":
        """Fit checkpoints; those of equal FLOPs are averaged."""
        distinct = np.unique(flops)
        means = np.array([scores[flops == f].mean() for f in distinct])
        weights = np.array([float((flops == f).sum()) for f in distinct])
        return cls(distinct, np.asarray(isotonic_regression(means, weights=weights).x))

    def find_flops(self, score: float) -> float:
        """Return the FLOPs at which the curve reaches a score first: infinite if never, 0 if it begins above."""
        if score > self.scores[-1]:
            return np.inf
        if score < self.scores[0]:
            return 0.0
        i = int(np.argmax(self.scores >= score))
        if i == 0:
            return float(self.flops[0])
        low, high = self.scores[i - 1], self.scores[i]
        share = (score - low) / (high - low)
        return float(np.exp(np.log(self.flops[i - 1]) * (1 - share) + np.log(self.flops[i]) * share))


class Saving(NamedTuple):
    """Savings rate of the continuations of one checkpoint on one mixture, equally long, over all seeds."""

    n_params: int
    family: Family
    mixture: str
    start_flops: float
    flops: float
    flops_with_attention: float
    n_seeds: int
    start_score: float
    score: float
    rate: float
    """FLOPs of the causal run at this score, over `flops`; infinite where the causal run never gets there."""
    low: float
    """Lower end of the 95% interval over tasks and seeds; NaN for a single task of a single seed."""
    high: float
    bound: float
    """FLOPs of the causal run's last checkpoint over `flops`: the lower bound of an infinite rate."""

    def __str__(self) -> str:
        if self.rate == 0:
            return "below the first checkpoint"
        rate = f"over {self.bound:.2f}x" if np.isinf(self.rate) else f"{self.rate:.2f}x"
        if math.isnan(self.low):
            return f"{rate} [unknown]"
        ends = [f"over {self.bound:.2f}" if np.isinf(x) else f"{x:.2f}" for x in (self.low, self.high)]
        return f"{rate} [{', '.join(ends)}]"


def estimate_savings(points: Sequence[Point], *, seed: int = 0) -> list[Saving]:
    """Estimate savings rates by size, start, mixture and length; intervals resample tasks and seeds.

    Raises:
        ValueError: no causal run of a size, one of a single checkpoint, points without a common task, or two of the
            same training.
    """
    _check_distinct(points)
    tasks = find_common_tasks(points)
    estimates = []
    for n_params in sorted({p.n_params for p in points}):
        size = [p for p in points if p.n_params == n_params]
        base = [p for p in size if p.family == "causal"]
        if len({p.flops for p in base}) < 2:
            raise ValueError(
                f"the causal curve of {n_params:,} parameters needs two checkpoints of the causal run, there are "
                f"{len(base)}."
            )
        forks = {}
        for p in size:
            if p.family != "causal":
                forks.setdefault((p.start_flops, p.family, p.mixture, p.flops), []).append(p)
        estimates += [_estimate_saving(base, group, tasks, seed) for _, group in sorted(forks.items())]
    return estimates


class Difference(NamedTuple):
    """Score of UL2R minus that of the control, over the pairs of continuations of equal compute, start and seed."""

    n_params: int
    mixture: str
    """Mixture of the UL2R continuations."""
    start_flops: float | None
    """6ND of the start; None for the pairs of all starts and lengths together."""
    flops: float | None
    """6ND of all stages; None likewise."""
    n_pairs: int
    mean: float
    se: float
    """Standard error of the mean over pairs; NaN for a single one."""


def compare_continuations(points: Sequence[Point]) -> list[Difference]:
    """Compare UL2R with the control by size, mixture, start and length, then over all of a size and mixture.

    Without pairs there is nothing to compare, and no difference.

    Raises:
        ValueError: points without a common task, or two of the same training.
    """
    _check_distinct(points)
    tasks = find_common_tasks(points)
    scores = {_identify(p): float(np.mean([p.scores[t] for t in tasks])) for p in points}
    groups: dict[tuple[int, str, float, float], list[float]] = {}
    for p in sorted(points, key=_identify):
        control = scores.get(_identify(p._replace(mixture="causal")))
        if p.family == "ul2r" and control is not None:
            key = (p.n_params, p.mixture, p.start_flops, p.flops)
            groups.setdefault(key, []).append(scores[_identify(p)] - control)
    differences = []
    for n_params, mixture in dict.fromkeys(key[:2] for key in groups):
        alike = {key: pairs for key, pairs in groups.items() if key[:2] == (n_params, mixture)}
        differences += [_average_pairs(*key, pairs) for key, pairs in alike.items()]
        differences.append(_average_pairs(n_params, mixture, None, None, sum(alike.values(), [])))
    return differences


def _average_pairs(
    n_params: int, mixture: str, start: float | None, flops: float | None, pairs: list[float]
) -> Difference:
    se = float(np.std(pairs, ddof=1) / np.sqrt(len(pairs))) if len(pairs) > 1 else math.nan
    return Difference(n_params, mixture, start, flops, len(pairs), float(np.mean(pairs)), se)


def _identify(p: Point) -> tuple[int, str, float, float, int]:
    return p.n_params, p.mixture, p.start_flops, p.flops, p.seed


def _check_distinct(points: Sequence[Point]) -> None:
    for (n_params, mixture, start, flops, seed), n in Counter(map(_identify, points)).items():
        if n > 1:
            raise ValueError(
                f"{n} results are of the same training ({n_params:,} parameters, mixture {mixture}, from {start:.4g} "
                f"to {flops:.4g} FLOPs, seed {seed}): give each checkpoint once."
            )


def find_common_tasks(points: Sequence[Point]) -> list[str]:
    """Return the tasks that every point has.

    Raises:
        ValueError: there is none.
    """
    tasks = sorted(set.intersection(*(set(p.scores) for p in points))) if points else []
    if not tasks:
        raise ValueError("the results have no task in common.")
    return tasks


def _estimate_saving(base: list[Point], group: list[Point], tasks: list[str], seed: int) -> Saving:
    """Estimate the savings rate of continuations that differ in their seeds alone."""
    on_curve, forked = _tabulate(base, tasks), _tabulate(group, tasks)
    curve_flops, flops = np.array([p.flops for p in base]), group[0].flops

    def rate(rows: np.ndarray, columns: np.ndarray) -> float:
        curve = Curve.fit(curve_flops, on_curve[:, columns].mean(1))
        return curve.find_flops(float(forked[np.ix_(rows, columns)].mean())) / flops

    rng, (n_rows, n_tasks) = np.random.default_rng(seed), forked.shape
    draws = [rate(rng.integers(0, n_rows, n_rows), rng.integers(0, n_tasks, n_tasks)) for _ in range(_DRAWS)]
    low, high = np.quantile(draws, [0.025, 0.975], method="inverted_cdf")  # of values that may be infinite
    if forked.size == 1:  # every draw is the same
        low = high = math.nan
    at_start = on_curve[np.isclose(curve_flops, group[0].start_flops)]
    return Saving(
        n_params=group[0].n_params,
        family=group[0].family,
        mixture=group[0].mixture,
        start_flops=group[0].start_flops,
        flops=flops,
        flops_with_attention=float(np.mean([p.flops_with_attention for p in group])),
        n_seeds=n_rows,
        start_score=float(at_start.mean()) if len(at_start) else float("nan"),
        score=float(forked.mean()),
        rate=rate(np.arange(n_rows), np.arange(n_tasks)),
        low=float(low),
        high=float(high),
        bound=float(curve_flops.max()) / flops,
    )


def _tabulate(points: Sequence[Point], tasks: Sequence[str]) -> np.ndarray:
    return np.array([[p.scores[task] for task in tasks] for p in points])


def _row_length(checkpoint: Path) -> int | None:
    """Return the positions of the rows that a checkpoint's run trained on; None if no run is known."""
    return description(checkpoint)["run"].get("data", {}).get("seq_len")


def describe_checkpoint(
    checkpoint: Path, model: Decoder, scorer: Scorer, stages: Sequence[lineage.Stage] | None = None
) -> dict[str, Any]:
    """Describe the checkpoint of results: its identity, and the compute that made it.

    Args:
        checkpoint: its folder.
        model: the model in it.
        scorer: of the model.
        stages: training that made it, if it is known better than the folder tells, as of an import.
    """
    config, stages = model.config, lineage.stages(checkpoint) if stages is None else stages
    compute: dict[str, Any] = dict.fromkeys(("stages", "flops_6nd", "flops_with_attention"))
    if stages is not None:
        n_tokens = sum(stage.n_tokens for stage in stages)
        compute["stages"] = [stage._asdict() for stage in stages]
        compute["flops_6nd"] = 6 * config.n_params * n_tokens
        compute["flops_with_attention"] = config.train_flops_per_token(_row_length(checkpoint)) * n_tokens
    identity = {"upalm": __version__, "checkpoint": str(checkpoint), "fingerprint": scorer.fingerprint}
    return identity | {"compute": {"n_params": config.n_params} | compute}
