"""The chunked loss against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from upalm.training.loss import Z_LOSS, chunked_loss, token_log_probs


def plain_loss(table, x, targets, weights, scale):
    """NLL + z-loss (PaLM section 5) from the logits of all positions at once."""
    logits = jnp.einsum("btd,vd->btv", x, table) * scale
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum((nll + Z_LOSS * jax.nn.logsumexp(logits, -1) ** 2) * weights)


@pytest.fixture(params=[16, 7])  # positions that chunks divide, and a prime number of them
def arrays(request):
    rng = np.random.default_rng(0)
    table, x = rng.normal(size=(11, 5)), rng.normal(size=(2, request.param, 5))
    targets, weights = rng.integers(0, 11, x.shape[:2]), rng.integers(0, 2, x.shape[:2])
    return *(jnp.asarray(a, jnp.float32) for a in (table, x)), jnp.asarray(targets), jnp.asarray(weights, jnp.float32)


def test_chunked_loss_is_the_plain_loss(arrays):
    total, log_probs = chunked_loss(*arrays, 0.7)
    np.testing.assert_allclose(total, plain_loss(*arrays, 0.7), rtol=1e-5)
    table, x, targets, _ = arrays
    logits = jnp.einsum("btd,vd->btv", x, table) * 0.7
    np.testing.assert_allclose(log_probs, token_log_probs(logits, targets)[0], rtol=1e-5)


def test_chunked_gradients_are_those_of_the_plain_loss(arrays):
    _, _, targets, weights = arrays
    found = jax.grad(lambda table, x: 3 * chunked_loss(table, x, targets, weights, 0.7)[0], (0, 1))(*arrays[:2])
    expected = jax.grad(lambda table, x: 3 * plain_loss(table, x, targets, weights, 0.7), (0, 1))(*arrays[:2])
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
