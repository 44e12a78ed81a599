"""Means with bootstrap intervals over rows."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

_DRAWS = 1000


class Estimate(NamedTuple):
    """A mean with its 95% interval, number of rows and standard error."""

    mean: float
    low: float
    high: float
    n: int
    se: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio(numerators: np.ndarray, denominators: np.ndarray, *, seed: int = 0) -> Estimate:
    """Estimate a sum over a sum, such as bits per byte, pooled over rows that are resampled together.

    >>> ratio(np.array([2.0, 2.0]), np.array([1.0, 1.0]))
    Estimate(mean=2.0, low=2.0, high=2.0, n=2, se=0.0)
    """
    n = len(numerators)
    if n == 0:
        raise ValueError("there are no rows to average over.")
    if not (np.isfinite(numerators).all() and np.isfinite(denominators).all()):
        raise ValueError(
            "a measured value is not finite: the model's weights or its outputs hold NaN or infinity, so that no mean "
            "over rows exists."
        )
    rng, draws = np.random.default_rng(seed), np.empty(_DRAWS)
    for i in range(_DRAWS):  # one at a time: a matrix of all draws would take gigabytes
        rows = rng.integers(0, n, n)
        total = denominators[rows].sum()
        draws[i] = numerators[rows].sum() / total if total else 0.0
    low, high = np.quantile(draws, [0.025, 0.975])
    pooled = float(numerators.sum() / denominators.sum()) if denominators.sum() else 0.0
    return Estimate(pooled, float(low), float(high), n, float(draws.std()))


def to_json(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    """Return estimates as plain values, for JSON."""
    return {name: estimate._asdict() for name, estimate in estimates.items()}


def mean(values: np.ndarray, *, seed: int = 0) -> Estimate:
    """Estimate a mean over rows."""
    return ratio(np.asarray(values, float), np.ones(len(values)), seed=seed)


def f1(predicted: np.ndarray, positive: np.ndarray, *, seed: int = 0) -> Estimate:
    """Estimate the F1 of binary predictions: twice the true positives over all predicted and all real positives.

    >>> f1(np.array([True, True, False]), np.array([True, False, False])).mean
    0.666...
    """
    return ratio(2.0 * (predicted & positive), np.asarray(predicted, float) + positive, seed=seed)
