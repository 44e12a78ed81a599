import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from upalm.training.optim import Adafactor, AdamW, Schedule, clip_by_layer_rms, scale_by_factored_rms


class Stacked(eqx.Module):
    embed: jax.Array
    blocks: dict


def params(key=0):
    a, b = jax.random.split(jax.random.key(key))
    scale = jnp.array([0.1, 1.0, 5.0]).reshape(3, 1, 1)  # layers of different size
    return Stacked(jax.random.normal(a, (7, 4)), {"w": jax.random.normal(b, (3, 4, 5)) * scale})


def run(opt, p, n=6):
    state = opt.init(p)
    for i in range(n):
        grads = jax.tree.map(lambda x, i=i: jnp.sin(x * (i + 1)) * 0.05, p)  # below the clipping norm
        updates, state = opt.update(grads, state, p)
        p = eqx.apply_updates(p, updates)
    return p


@pytest.mark.parametrize("decay", [True, False])
def test_adafactor_is_optaxs_on_each_layer(decay):
    """optax's own Adafactor on unstacked layers, with PaLM's lr^2 decay added by hand."""
    rate = 0.01
    ours = run(Adafactor(Schedule("constant", peak=rate), clip_norm=1e9, decay=decay).build(6), params())
    oracle = optax.adafactor(
        rate, factored=False, multiply_by_parameter_scale=True, momentum=0.9, decay_rate=0.8, clipping_threshold=None,
        weight_decay_rate=rate**2 if decay else None, eps=1e-30,
    )  # fmt: skip
    p = params()
    theirs = run(oracle, [p.embed, *p.blocks["w"]])
    np.testing.assert_allclose(ours.embed, theirs[0], rtol=1e-5, atol=1e-6)
    for i in range(3):
        np.testing.assert_allclose(ours.blocks["w"][i], theirs[i + 1], rtol=1e-5, atol=1e-6)


def test_global_norm_is_clipped():
    p = params()
    grads = jax.tree.map(lambda x: x * 1e6, p)
    for kind in (Adafactor, AdamW):
        opt = kind(Schedule("constant", peak=0.01)).build(10)
        a, _ = opt.update(grads, opt.init(p), p)
        b, _ = opt.update(jax.tree.map(lambda g: g * 1e3, grads), opt.init(p), p)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6)


def test_schedules():
    palm = Schedule("rsqrt", peak=1e-2).build(255_000)
    assert float(palm(0)) == float(palm(9_999)) == pytest.approx(1e-2)
    assert float(palm(255_000)) == pytest.approx(1.98e-3, rel=1e-3)  # PaLM section 5: 1/sqrt(k)
    ul2r = Schedule("cosine", peak=1e-4, final=1e-6).build(20_000)
    assert float(ul2r(0)) == pytest.approx(1e-4)
    assert float(ul2r(20_000)) == pytest.approx(1e-6)
    warm = Schedule("constant", peak=1.0, warmup_steps=10).build(100)
    assert [float(warm(k)) for k in (0, 5, 10, 50)] == [0, 0.5, 1, 1]


@pytest.mark.parametrize("bad", [{"peak": 0.0}, {"peak": 1e-4, "final": 1e-3}, {"warm_steps": 0}])
def test_bad_schedule(bad):
    with pytest.raises(ValueError, match="expected|peak"):
        Schedule(**bad)


def test_factored_moments_are_optaxs_on_each_large_matrix():
    ours, theirs = scale_by_factored_rms(0.8), optax.scale_by_factored_rms(factored=True, epsilon=1e-30)
    like = Stacked(jnp.zeros((130, 140)), {"w": jnp.zeros((3, 140, 130))})
    unstacked = [like.embed, *like.blocks["w"]]
    state, oracle_state = ours.init(like), theirs.init(unstacked)
    for i in range(4):
        keys = jax.random.split(jax.random.key(i))
        g = Stacked(jax.random.normal(keys[0], (130, 140)), {"w": jax.random.normal(keys[1], (3, 140, 130))})
        found, state = ours.update(g, state, like)
        expected, oracle_state = theirs.update([g.embed, *g.blocks["w"]], oracle_state, unstacked)
        for x, y in zip([found.embed, *found.blocks["w"]], expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5)


def test_updates_are_clipped_as_optax_does_per_layer():
    g = Stacked(jnp.full((2, 3), 0.5), {"w": jnp.array([0.1, 1.0, 4.0])[:, None] * jnp.arange(5.0)[None]})
    found, _ = clip_by_layer_rms().update(g, optax.EmptyState())
    theirs = optax.clip_by_block_rms(1.0)
    unstacked = [g.embed, *g.blocks["w"]]
    expected, _ = theirs.update(unstacked, theirs.init(unstacked))
    for x, y in zip([found.embed, *found.blocks["w"]], expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_factored_moments_of_gradients_of_rank_one_are_exact():
    """Factored moments are exact for a layer's parameter of any number of axes."""
    rows, columns = (
        jax.random.normal(jax.random.key(0), (3, 4, 2, 1)),
        jax.random.normal(jax.random.key(1), (3, 1, 1, 5)),
    )
    p = Stacked(jnp.zeros(3), {"w": rows * columns})
    factored, full = scale_by_factored_rms(0.8), optax.scale_by_factored_rms(factored=False, epsilon=1e-30)
    found, _ = factored.update(p, factored.init(p), p)
    expected, _ = full.update(p, full.init(p), p)
    np.testing.assert_allclose(found.blocks["w"], expected.blocks["w"], rtol=1e-5)


def test_factored_state_takes_two_bytes_per_parameter():
    p = Stacked(jnp.zeros((512, 256)), {"w": jnp.zeros((4, 256, 8, 64)), "norm": jnp.zeros((4, 256))})
    n_params = sum(x.size for x in jax.tree.leaves(p))
    for factored, limit in ((False, 8.01), (True, 2.1)):
        state = Adafactor(factored=factored).build(10).init(p)
        assert sum(x.nbytes for x in jax.tree.leaves(state)) < limit * n_params
