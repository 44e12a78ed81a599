"""Means with bootstrap intervals over rows."""

from typing import NamedTuple

import numpy as np

_DRAWS = 1000


class Estimate(NamedTuple):
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio(numerators: np.ndarray, denominators: np.ndarray, *, seed: int = 0) -> Estimate:
    """Sum over sum, such as bits over bytes pooled over rows; rows are drawn again together.

    >>> ratio(np.array([2.0, 2.0]), np.array([1.0, 1.0]))
    Estimate(mean=2.0, low=2.0, high=2.0, n=2)
    """
    n = len(numerators)
    if n == 0:
        raise ValueError("no rows to average over.")
    rows = np.random.default_rng(seed).integers(0, n, (_DRAWS, n))
    draws = numerators[rows].sum(1) / denominators[rows].sum(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(numerators.sum() / denominators.sum()), float(low), float(high), n)


def mean(values: np.ndarray, *, seed: int = 0) -> Estimate:
    """Mean over rows."""
    return ratio(np.asarray(values, float), np.ones(len(values)), seed=seed)
