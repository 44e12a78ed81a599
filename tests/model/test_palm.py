"""PaLM by the formulas of its paper; the same function packed, scanned, rematerialised and cached, in every block."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.rows import pack, packed_batch

from upalm.checkpoints.arrays import to_arrays
from upalm.inference.config import GenerationConfig
from upalm.inference.decoding import Task, decode
from upalm.inference.grammar import Rules
from upalm.model.attention import key_range
from upalm.model.config import ModelConfig
from upalm.model.layers import normalise, rotary
from upalm.model.palm import Block, Decoder, empty_model
from upalm.training.loss import loss_fn
from upalm.ul2r.symbols import Symbols

CONFIG = ModelConfig(vocab_size=200, d_model=32, n_layers=3, n_heads=4, d_head=8, d_ff=64, seq_len=64)


OPEN = replace(CONFIG, n_kv_heads=2, tied_head=False, final_norm_scale=True, logit_scale=0.2)
KINDS = {
    "PaLM": CONFIG,
    "Llama and Qwen": replace(
        OPEN, block="sequential", rope_factor=4.0, rope_original_seq_len=16, qkv_bias=True, qk_norm="shared"
    ),
    "OLMo 2": replace(OPEN, block="post_norm", qk_norm="flat"),
    "Gemma": replace(OPEN, block="sequential", gate="gelu", embed_scale=32**0.5, n_kv_heads=1, tied_head=True),
}


def random_model(config: ModelConfig) -> Decoder:
    """A decoder with random norm scales and biases, so that leaving one out shows."""
    rng = np.random.default_rng(0)

    def perturbed(path, x):
        is_small = path[-1].name in ("norm", "mlp_norm", "q_norm", "k_norm", "bq", "bk", "bv")
        return x + 0.3 * jnp.asarray(rng.normal(size=x.shape), x.dtype) if is_small else x

    return jax.tree_util.tree_map_with_path(perturbed, Decoder(config, key=jax.random.key(0)))


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return random_model(KINDS[request.param])


@pytest.fixture(scope="module")
def palm():
    return Decoder(CONFIG, key=jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    return packed_batch()


# --- The papers' oracles, without allocating anything ---


def test_init_scales():
    big = ModelConfig(vocab_size=500, d_model=256, n_layers=2, n_heads=2, d_head=64, d_ff=1024)
    made = to_arrays(Decoder(big, key=jax.random.key(0)))
    fan_in = {"wq": 256, "wk": 256, "wv": 256, "wo": 128, "w_gate": 256, "w_up": 256, "w_down": 1024}
    for name, n in fan_in.items():
        assert float(jnp.std(made[f"blocks.{name}"])) == pytest.approx(n**-0.5, rel=0.03)
    assert float(jnp.std(made["embed"])) == pytest.approx(1, rel=0.03)
    assert not made["blocks.norm"].any()


@pytest.mark.parametrize("qk_norm", ["l2", "shared", "flat"])
def test_axes_name_every_array_with_its_rank(qk_norm):
    every = replace(CONFIG, final_norm_scale=True, qk_norm=qk_norm, tied_head=False, block="sequential", qkv_bias=True)
    for module, stacked in ((Block, 1), (Decoder, 0)):
        tree = empty_model(every)
        arrays = to_arrays(tree.blocks)
        if module is Decoder:
            arrays = {k: v for k, v in to_arrays(tree).items() if not k.startswith("blocks.")}
        assert {k: v.ndim - stacked for k, v in arrays.items()} == {k: len(v) for k, v in module.AXES.items()}


# --- Masks ---


def influence(model, batch, query):
    """Bool[T]: which input positions move the logits at `query`."""

    def logit_of(x):
        body = model.hidden
        embedded = eqx.tree_at(lambda m: m.embed, model, x)
        return jnp.sum(eqx.Partial(body.__func__, embedded)(batch)[0, query] ** 2)

    # every position has its own embedding row, so that the gradient by row is the gradient by position
    return np.asarray(jnp.any(jax.grad(logit_of)(model.embed) != 0, -1))


@pytest.mark.parametrize("query", [2, 5, 8, 14])
def test_prefix_and_segment_isolation_by_gradient(palm, query):
    batch = pack((range(10, 15), range(20, 24)), (range(30, 33), range(40, 45)))
    n = int((batch.segment_ids > 0).sum())
    batch = batch._replace(input_tokens=np.where(batch.segment_ids > 0, np.arange(64)[None] + 100, 0).astype(np.int32))
    moved = influence(palm, batch, query)[100 : 100 + n]
    start = 0 if query < 9 else 9
    end = max(query + 1, start + (6 if start == 0 else 4))
    expected = (np.arange(n) >= start) & (np.arange(n) < end)
    assert np.array_equal(moved, expected)


def test_prefix_of_length_one_is_causal(model):
    batch = pack(([], range(10, 40)))
    assert np.array_equal(model(batch), model(batch.causal()))


def test_packed_is_unpacked(model):
    examples = [(range(10, 15), range(20, 24)), (range(30, 33), range(40, 45)), ([], [50, 51])]
    packed = np.asarray(model(pack(*examples)))[0]
    at = 0
    for example in examples:
        n = sum(map(len, example))
        alone = np.asarray(model(pack(example, length=32)))[0, :n]
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
    model = Decoder(replace(CONFIG, n_kv_heads=n_kv_heads), key=jax.random.key(1))
    model = eqx.tree_at(lambda m: m.blocks.norm, model, jax.random.normal(jax.random.key(2), (3, 32)) * 0.3)
    batch = pack((range(10, 15), range(20, 24)), (range(30, 33), range(40, 45)))
    n = int((batch.segment_ids > 0).sum())
    np.testing.assert_allclose(np.asarray(model(batch))[0, :n], reference(model, batch)[:n], atol=2e-5)


def with_config(model: Decoder, **changes) -> Decoder:
    """The weights of a model under another config."""
    structure = jax.tree.structure(empty_model(replace(model.config, **changes)))
    return jax.tree.unflatten(structure, jax.tree.leaves(model))


def gradient(model, batch):
    return to_arrays(eqx.filter_grad(lambda m: loss_fn(m, batch)[0])(model))


@pytest.mark.parametrize("remat", ["none", "full"])
def test_remat_changes_nothing(model, batch, remat):
    other = with_config(model, remat=remat)
    assert other.config.remat != model.config.remat
    ours, theirs = gradient(model, batch), gradient(other, batch)
    assert max(float(jnp.abs(g).max()) for g in ours.values()) > 0.1
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-4, rtol=1e-4)


def test_scan_is_unrolled(model, batch):
    def unrolled(m):
        visible = key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask))
        tables = rotary(jnp.asarray(batch.positions), m.config)
        x = m.embed_tokens(jnp.asarray(batch.input_tokens))
        for block in m.unstacked():
            x, _ = block(x, tables, visible)
        return m.logits(normalise(x, m.norm, m.config))

    np.testing.assert_allclose(model(batch), unrolled(model), atol=1e-5)


def test_bf16_compute_is_close(model, batch):
    low = with_config(model, compute_dtype="bfloat16")
    assert low.hidden(batch).dtype == jnp.bfloat16
    expected = np.asarray(model(batch))
    assert float(jnp.abs(low(batch) - expected).mean()) < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("attention", ["prefix", "causal"])
def test_cached_decode_is_the_full_forward(model, attention):
    """Log-probabilities of generated tokens, and the tokens, are those of rows read at once."""
    prompts = [list(range(10, 10 + n)) for n in (3, 8)]
    tasks = [Task(prompt, 6) for prompt in prompts]
    completions = decode(model, tasks, GenerationConfig(attention=attention), Rules(Symbols((), {}, bos_id=0)))
    for prompt, [found] in zip(prompts, completions, strict=True):
        row = pack((prompt, found.tokens.tolist()), length=32)
        row = row if attention == "prefix" else row.causal()
        log_probs = np.asarray(jax.nn.log_softmax(model(row)))[0, len(prompt) : len(prompt) + len(found.tokens)]
        np.testing.assert_array_equal(log_probs.argmax(-1), found.tokens)
        expected = np.take_along_axis(log_probs, found.tokens[:, None], -1)[:, 0]
        np.testing.assert_allclose(found.log_probs, expected, atol=1e-4)
