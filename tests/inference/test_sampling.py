"""Samplers against the probabilities that they draw from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upalm.inference.sampling import Sampler

LOGITS = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
KEYS = jax.random.split(jax.random.key(0), 800)


def drawn(sampler):
    tokens = np.asarray(jax.jit(sampler)(jnp.repeat(LOGITS, len(KEYS), 0), KEYS))
    return np.bincount(tokens, minlength=4) / len(tokens)


@pytest.mark.parametrize(
    ("sampler", "kept"),
    [
        (Sampler(), 1),
        (Sampler(1.0), 4),
        (Sampler(1.0, top_k=2), 2),
        (Sampler(1.0, top_k=9), 4),
        (Sampler(1.0, top_p=0.7), 2),
        (Sampler(1.0, top_p=0.81), 3),
        (Sampler(1.0, min_p=0.25), 3),
        (Sampler(1.0, min_p=0.35), 2),
        (Sampler(1.0, top_k=3, top_p=0.6, min_p=0.1), 2),
    ],
    ids=repr,
)
def test_filters_keep_the_most_likely_and_their_proportions(sampler, kept):
    expected = np.exp(np.array(LOGITS[0])) * (np.arange(4) < kept)
    np.testing.assert_allclose(drawn(sampler), expected / expected.sum(), atol=0.06)
    assert (drawn(sampler)[kept:] == 0).all()


def test_temperature_is_a_power_of_the_probabilities():
    expected = np.exp(np.array(LOGITS[0])) ** 2
    np.testing.assert_allclose(drawn(Sampler(0.5)), expected / expected.sum(), atol=0.06)


@pytest.mark.parametrize("logits", [[1.0, 3.0, 3.0], [-np.inf, -np.inf, 0.0], [-np.inf, -5.0, -np.inf]])
def test_greedy_is_argmax_ties_included(logits):
    assert int(Sampler()(jnp.array([logits]), KEYS[:1])[0]) == np.argmax(logits)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1e-30},
        {"top_k": -1},
        {"top_k": True},
        {"top_p": 0.0},
        {"top_p": float("nan")},
        {"min_p": 1.5},
        {"min_p": float("nan")},
    ],
    ids=repr,
)
def test_values_out_of_range_and_nan_are_refused(wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value}, expected"):
        Sampler(**wrong)
