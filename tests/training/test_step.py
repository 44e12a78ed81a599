"""The training step against its definition."""

import equinox as eqx
import jax
import numpy as np
import optax
from support.runs import MODEL

from upalm.checkpoints.arrays import to_arrays
from upalm.data.config import DataConfig
from upalm.data.loader import Loader
from upalm.model.palm import Decoder
from upalm.training.loss import loss_fn
from upalm.training.step import TrainState, evaluate, microbatched, train_step


def test_microbatches_give_the_update_of_the_whole_batch(tokenizer, tokens):
    """Loss-token counts differ between microbatches, so that a mean of means would fail."""
    loader = Loader(tokens, DataConfig(seq_len=64, batch_size=8), tokenizer.symbols, seed=0)
    batch = loader.batch(0)
    counts = batch.loss_weights.reshape(4, -1).sum(-1)
    assert counts.max() > 1.2 * counts.min()
    models = []
    for n in (1, 2, 4, 8):
        optimizer = optax.sgd(1.0)
        model = Decoder(MODEL, key=jax.random.key(0))
        state = TrainState(model, optimizer.init(model))
        state, reported = train_step(state, microbatched(batch, n), optimizer=optimizer, n_denoisers=3)
        models.append(to_arrays(state.model) | {"nll": reported.sums.nll})
    for other in models[1:]:
        for name in other:
            np.testing.assert_allclose(other[name], models[0][name], rtol=2e-4, atol=2e-5)


def test_step_is_gradient_descent_on_the_mean_loss(tokenizer, tokens):
    batch = Loader(tokens, DataConfig(seq_len=64, batch_size=2), tokenizer.symbols, seed=0).batch(0)
    model, optimizer = Decoder(MODEL, key=jax.random.key(0)), optax.sgd(0.5)
    expected = eqx.filter_grad(lambda m: loss_fn(m, batch)[0] / batch.loss_weights.sum())(model)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, model, expected)
    state = TrainState(jax.tree.map(np.array, model), optimizer.init(model))
    state, _ = train_step(state, microbatched(batch, 1), optimizer=optimizer, n_denoisers=3)
    for a, b in zip(jax.tree.leaves(state.model), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_validation_loss_is_the_mean_over_loss_tokens(tokenizer, tokens):
    loader = Loader(tokens, DataConfig(seq_len=64, batch_size=2), tokenizer.symbols, seed=0)
    batches, model = [loader.batch(k) for k in range(2)], Decoder(MODEL, key=jax.random.key(0))
    sums = [loss_fn(model, batch, n_denoisers=3)[1] for batch in batches]
    expected = sum(s.nll.sum() for s in sums) / sum(s.weight.sum() for s in sums)
    assert np.isclose(evaluate(model, [microbatched(b, 1) for b in batches], 3), expected, rtol=1e-5)
