"""Means with bootstrap intervals over rows."""

from typing import NamedTuple

import numpy as np

_DRAWS = 1000


class Estimate(NamedTuple):
    """A mean, its 95% interval and its standard error."""

    mean: float
    low: float
    high: float
    n: int
    se: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio(numerators: np.ndarray, denominators: np.ndarray, *, seed: int = 0) -> Estimate:
    """Sum over sum, such as bits over bytes pooled over rows; rows are drawn again together.

    >>> ratio(np.array([2.0, 2.0]), np.array([1.0, 1.0]))
    Estimate(mean=2.0, low=2.0, high=2.0, n=2, se=0.0)
    """
    n = len(numerators)
    if n == 0:
        raise ValueError("no rows to average over.")
    rng, draws = np.random.default_rng(seed), np.empty(_DRAWS)
    for i in range(_DRAWS):  # one by one: ten thousand rows take no gigabytes
        rows = rng.integers(0, n, n)
        total = denominators[rows].sum()
        draws[i] = numerators[rows].sum() / total if total else 0.0
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(numerators.sum() / denominators.sum()), float(low), float(high), n, float(draws.std()))


def mean(values: np.ndarray, *, seed: int = 0) -> Estimate:
    """Mean over rows."""
    return ratio(np.asarray(values, float), np.ones(len(values)), seed=seed)


def f1(predicted: np.ndarray, positive: np.ndarray, *, seed: int = 0) -> Estimate:
    """F1 of two-way predictions: twice the true positives over the predicted and the real ones, pooled over rows.

    >>> f1(np.array([True, True, False]), np.array([True, False, False])).mean
    0.666...
    """
    return ratio(2.0 * (predicted & positive), np.asarray(predicted, float) + positive, seed=seed)
