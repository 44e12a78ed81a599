import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upalm import ul2r
from upalm.checkpoints.arrays import to_arrays
from upalm.data.config import DataConfig
from upalm.data.loader import Loader
from upalm.data.tokens import Tokens
from upalm.model.attention import KeyRange, attend, key_range
from upalm.model.config import PALM, ModelConfig
from upalm.model.palm import Block, Decoder, empty_model
from upalm.training.loss import Z_LOSS, chunked_loss, loss_fn
from upalm.ul2r.rows import Batch
from upalm.ul2r.symbols import Symbols

CONFIG = ModelConfig(vocab_size=200, d_model=32, n_layers=3, n_heads=4, d_head=8, d_ff=64, seq_len=64)
SYMBOLS = Symbols(tuple(range(199, 99, -1)), {"s2s": (3, 4), "nlu": (5,), "nlg": (6,)})


@pytest.fixture(scope="module")
def model():
    return Decoder(CONFIG, key=jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    tokens = Tokens.from_documents([np.random.default_rng(i).integers(7, 100, 150).tolist() for i in range(4)])
    config = DataConfig(seq_len=64, batch_size=3)
    batch = Loader(tokens, config, SYMBOLS, seed=0).batch(0)
    for field in batch:
        field[0, -5:] = 0  # padding, which rows of this loader hardly have
    return batch


def rows(*examples, length=64):
    """One packed row of (inputs, targets) pairs."""
    batch = Batch.empty(1, length)
    row, at = batch.row(0), 0
    for i, (inputs, targets) in enumerate(examples):
        at = ul2r.write_segment(row, at, ul2r.Example(np.array(inputs, int), np.array(targets, int)), i + 1, 0, 0)
    return batch


# --- The papers' oracles, without allocating anything ---


@pytest.mark.parametrize(("size", "billions"), [("8b", 8.63), ("62b", 62.50), ("540b", 540.35)])
def test_parameter_counts(size, billions):
    arrays = to_arrays(empty_model(PALM[size]))
    counted = sum(int(np.prod(x.shape)) for name, x in arrays.items() if not name.endswith("norm"))
    assert round(counted / 1e9, 2) == billions
    assert counted == PALM[size].n_params


@pytest.mark.parametrize(("size", "teraflops"), [("8b", 0.0550), ("62b", 0.388), ("540b", 3.28)])
def test_flops_per_token(size, teraflops):
    flops = PALM[size].train_flops_per_token(2048)
    assert float(f"{flops / 1e12:.3g}") == teraflops


def test_small_sizes():
    assert PALM["tiny"].n_params < 2e6
    assert 0.9e8 < PALM["small"].n_params < 1.2e8
    assert 0.9e9 < PALM["1b"].n_params < 1.3e9


def test_init_scales():
    big = ModelConfig(vocab_size=500, d_model=256, n_layers=2, n_heads=2, d_head=64, d_ff=1024)
    made = to_arrays(Decoder(big, key=jax.random.key(0)))
    fan_in = {"wq": 256, "wk": 256, "wv": 256, "wo": 128, "w_gate": 256, "w_up": 256, "w_down": 1024}
    for name, n in fan_in.items():
        assert float(jnp.std(made[f"blocks.{name}"])) == pytest.approx(n**-0.5, rel=0.03)
    assert float(jnp.std(made["embed"])) == pytest.approx(1, rel=0.03)
    assert not made["blocks.norm"].any()


def test_axes_name_every_array_with_its_rank():
    every = dataclasses.replace(CONFIG, final_norm_scale=True, qk_norm="l2", tied_head=False)
    for module, stacked in ((Block, 1), (Decoder, 0)):
        tree = empty_model(every)
        arrays = to_arrays(tree.blocks)
        if module is Decoder:
            arrays = {k: v for k, v in to_arrays(tree).items() if not k.startswith("blocks.")}
        assert {k: v.ndim - stacked for k, v in arrays.items()} == {k: len(v) for k, v in module.AXES.items()}


# --- Masks ---


def test_key_range_is_the_prefix_mask_with_packing(batch):
    """Against the definition: same segment and (causal or both in the prefix)."""
    visible = key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask)).mask(64)
    ids, prefix = batch.segment_ids, batch.prefix_mask
    causal = np.tril(np.ones((64, 64), bool))[None]
    both = prefix[:, :, None] & prefix[:, None, :]
    same = ids[:, :, None] == ids[:, None, :]
    assert np.array_equal(np.asarray(visible), same & (causal | both))
    assert (ids == 0).any() and prefix.any()


def influence(model, batch, query):
    """Bool[T]: which input positions move the logits at `query`."""

    def logit_of(x):
        body = model.hidden
        embedded = eqx.tree_at(lambda m: m.embed, model, x)
        return jnp.sum(eqx.Partial(body.__func__, embedded)(batch)[0, query] ** 2)

    # every position has its own embedding row, so that the gradient by row is the gradient by position
    return np.asarray(jnp.any(jax.grad(logit_of)(model.embed) != 0, -1))


@pytest.mark.parametrize("query", [2, 5, 8, 14])
def test_prefix_and_segment_isolation_by_gradient(model, query):
    batch = rows((range(10, 15), range(20, 24)), (range(30, 33), range(40, 45)))
    n = int((batch.segment_ids > 0).sum())
    batch = batch._replace(input_tokens=np.where(batch.segment_ids > 0, np.arange(64)[None] + 100, 0).astype(np.int32))
    moved = influence(model, batch, query)[100 : 100 + n]
    start = 0 if query < 9 else 9
    end = max(query + 1, start + (6 if start == 0 else 4))
    expected = (np.arange(n) >= start) & (np.arange(n) < end)
    assert np.array_equal(moved, expected)


def test_prefix_of_length_one_is_causal(model):
    batch = rows(([], range(10, 40)))
    assert np.array_equal(model(batch), model(batch.causal()))


def test_packed_is_unpacked(model):
    examples = [(range(10, 15), range(20, 24)), (range(30, 33), range(40, 45)), ([], [50, 51])]
    packed = np.asarray(model(rows(*examples)))[0]
    at = 0
    for example in examples:
        n = sum(map(len, example))
        alone = np.asarray(model(rows(example, length=32)))[0, :n]
        np.testing.assert_allclose(packed[at : at + n], alone, atol=1e-5)
        at += n


# --- Same function, other ways ---


def reference(model, batch):
    """PaLM as its section 2 says it, unrolled, for one row, in plain NumPy float64."""
    c, w = model.config, {k: np.asarray(v, np.float64) for k, v in to_arrays(model).items()}

    def norm(x, g):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + g)

    def rope(x):  # [T, ..., H]
        angle = np.asarray(batch.positions[0], float)[:, None] * 10_000.0 ** (-np.arange(0, c.d_head, 2) / c.d_head)
        angle = angle.reshape(len(angle), *([1] * (x.ndim - 2)), -1)
        a, b = np.split(x, 2, -1)
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)

    same = batch.segment_ids[0][:, None] == batch.segment_ids[0][None]
    both = batch.prefix_mask[0][:, None] & batch.prefix_mask[0][None]
    visible = same & (np.tril(np.ones(same.shape, bool)) | both)
    x = w["embed"][batch.input_tokens[0]]
    for i in range(c.n_layers):
        p = {k: v[i] for k, v in w.items() if k.startswith("blocks")}
        h = norm(x, p["blocks.norm"])
        q = rope(np.einsum("td,dnh->tnh", h, p["blocks.wq"]))
        k, v = rope(np.einsum("td,dkh->tkh", h, p["blocks.wk"])), np.einsum("td,dkh->tkh", h, p["blocks.wv"])
        k, v = (np.repeat(a, c.n_heads // c.n_kv_heads, 1) for a in (k, v))
        scores = np.where(visible[None], np.einsum("tnh,snh->nts", q, k) / np.sqrt(c.d_head), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.einsum("nts,snh->tnh", weights / weights.sum(-1, keepdims=True), v)
        gate = h @ p["blocks.w_gate"]
        gated = gate / (1 + np.exp(-gate)) * (h @ p["blocks.w_up"])
        x = x + np.einsum("tnh,nhd->td", attended, p["blocks.wo"]) + gated @ p["blocks.w_down"]
    return norm(x, 0) @ w["embed"].T / np.sqrt(c.d_model)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_model_is_the_papers(n_kv_heads):
    model = Decoder(dataclasses.replace(CONFIG, n_kv_heads=n_kv_heads), key=jax.random.key(1))
    model = eqx.tree_at(lambda m: m.blocks.norm, model, jax.random.normal(jax.random.key(2), (3, 32)) * 0.3)
    batch = rows((range(10, 15), range(20, 24)), (range(30, 33), range(40, 45)))
    n = int((batch.segment_ids > 0).sum())
    np.testing.assert_allclose(np.asarray(model(batch))[0, :n], reference(model, batch)[:n], atol=2e-5)


def gradient(model, batch):
    return to_arrays(eqx.filter_grad(lambda m: loss_fn(m, batch)[0])(model))


@pytest.mark.parametrize("remat", ["none", "full"])
def test_remat_changes_nothing(model, batch, remat):
    other = Decoder(dataclasses.replace(CONFIG, remat=remat), key=jax.random.key(0))
    assert other.config.remat != model.config.remat
    ours, theirs = gradient(model, batch), gradient(other, batch)
    assert max(float(jnp.abs(g).max()) for g in ours.values()) > 0.1
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-4, rtol=1e-4)


def test_scan_is_unrolled(model, batch):
    def unrolled(m):
        from upalm.model.layers import normalise, rotary

        visible = key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask))
        tables = rotary(jnp.asarray(batch.positions), m.config)
        x = m.embed_tokens(jnp.asarray(batch.input_tokens))
        for block in m.unstacked():
            x, _ = block(x, tables, visible)
        return m.logits(normalise(x, m.norm, m.config))

    np.testing.assert_allclose(model(batch), unrolled(model), atol=1e-5)


def test_layernorm_option_centres(batch):
    model = Decoder(dataclasses.replace(CONFIG, norm="layernorm"), key=jax.random.key(0))
    assert abs(float(model.hidden(batch).mean(-1).max())) < 1e-5
    assert not np.allclose(model(batch), Decoder(CONFIG, key=jax.random.key(0))(batch))


def test_bf16_compute_is_close(model, batch):
    low = Decoder(dataclasses.replace(CONFIG, compute_dtype="bfloat16"), key=jax.random.key(0))
    assert low.hidden(batch).dtype == jnp.bfloat16
    assert float(jnp.abs(low(batch) - model(batch)).mean()) < 0.05


@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_attention_and_its_gradient_are_jaxs(n_kv_heads):
    rng = np.random.default_rng(n_kv_heads)
    shapes = ((2, 12, 4), (2 * n_kv_heads, 12), (2 * n_kv_heads, 12), (2, 12, 4))
    q, k, v, d_out = (jnp.asarray(rng.normal(size=(*shape, 8)), jnp.float32) for shape in shapes)
    start = rng.integers(0, 8, (2, 12))
    visible = KeyRange(jnp.asarray(start), jnp.asarray(start + rng.integers(1, 5, (2, 12))))
    mask = visible.mask(12)

    def plain(q, k, v):
        k, v = (x.reshape(2, n_kv_heads, 12, 8).swapaxes(1, 2) for x in (k, v))
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="xla")

    expected, expected_gradient = jax.vjp(plain, q, k, v)
    found, gradient = jax.vjp(lambda *qkv: attend(*qkv, visible), q, k, v)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for a, b in zip(gradient(d_out), expected_gradient(d_out), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


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


def test_loss_counts_targets_only_and_splits_by_denoiser(model, batch):
    total, sums = loss_fn(model, batch, n_denoisers=3)
    for i in range(3):
        assert float(sums.weight[i]) == batch.loss_weights[batch.denoiser_ids == i].sum()
    logits = np.asarray(model(batch), np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    nll = log_z - np.take_along_axis(logits, batch.target_tokens[..., None], -1)[..., 0]
    expected = ((nll + 1e-4 * log_z**2) * batch.loss_weights).sum()
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(sums.nll.sum()) == pytest.approx((nll * batch.loss_weights).sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_head": 7}, "even"),
        ({"n_heads": 3, "n_kv_heads": 2}, "multiple"),
        ({"n_layers": 0}, "at least 1"),
        ({"norm_eps": 0.0}, "norm_eps is 0"),
    ],
)
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)
