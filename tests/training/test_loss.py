"""The chunked loss and its gradient against the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.rows import packed_batch

from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder
from upalm.training.loss import Z_LOSS, chunked_loss, loss_fn

CONFIG = ModelConfig(vocab_size=200, d_model=32, n_layers=3, n_heads=4, d_head=8, d_ff=64, seq_len=64)


@pytest.mark.parametrize("length", [64, 36, 7])
def test_chunked_loss_and_its_gradient_are_the_whole(length):
    rng = np.random.default_rng(length)
    embed, x = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((50, 16), (3, length, 16)))
    targets = jnp.asarray(rng.integers(0, 50, (3, length)))
    weights = jnp.asarray(rng.integers(0, 3, (3, length)), jnp.float32)

    def whole(embed, x):
        log_p = jax.nn.log_softmax(x @ embed.T / 4)
        log_z = jax.nn.logsumexp(x @ embed.T / 4, -1)
        nll = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
        return 3 * jnp.sum(weights * (nll + Z_LOSS * log_z**2))

    found = jax.value_and_grad(lambda e, x: 3 * chunked_loss(e, x, targets, weights, 0.25)[0], (0, 1))(embed, x)
    expected = jax.value_and_grad(whole, (0, 1))(embed, x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert float(3 * chunked_loss(embed, x, targets, weights, 0.25)[0]) == pytest.approx(float(found[0]))


def test_loss_counts_targets_only_and_splits_by_denoiser():
    model, batch = Decoder(CONFIG, key=jax.random.key(0)), packed_batch()
    total, sums = loss_fn(model, batch, n_denoisers=3)
    for i in range(3):
        assert float(sums.weight[i]) == batch.loss_weights[batch.denoiser_ids == i].sum()
    logits = np.asarray(model(batch), np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    nll = log_z - np.take_along_axis(logits, batch.target_tokens[..., None], -1)[..., 0]
    expected = ((nll + 1e-4 * log_z**2) * batch.loss_weights).sum()
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(sums.nll.sum()) == pytest.approx((nll * batch.loss_weights).sum(), rel=1e-5)
