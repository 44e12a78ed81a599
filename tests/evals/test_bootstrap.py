"""Bootstrap intervals."""

import numpy as np
import pytest

from upalm.evals import bootstrap


def test_95_percent_of_intervals_hold_the_true_mean():
    """95% of intervals hold the true mean, within three standard errors."""
    rng = np.random.default_rng(0)
    inside = [e.low <= 1.0 <= e.high for e in (bootstrap.mean(rng.normal(1, 1, 80)) for _ in range(300))]
    assert 0.91 < np.mean(inside) < 0.99


def test_values_that_are_not_finite_have_no_mean():
    for values in (np.array([1.0, np.nan]), np.array([np.inf])):
        with pytest.raises(ValueError, match="not finite"):
            bootstrap.mean(values)
    with pytest.raises(ValueError, match="no rows"):
        bootstrap.mean(np.empty(0))
