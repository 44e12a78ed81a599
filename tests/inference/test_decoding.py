"""Cached decoding against the full forward, and what a batch may not change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upalm import ul2r
from upalm.inference import decoding, scoring
from upalm.inference.config import GenerationConfig
from upalm.inference.decoding import DecodingModel, Padding, Task, decode, decode_stream
from upalm.inference.grammar import ANYTHING, Rules
from upalm.inference.sampling import MIN_TEMPERATURE, Sampler
from upalm.model.config import ModelConfig
from upalm.model.layers import normalise
from upalm.model.palm import Decoder
from upalm.ul2r.rows import Batch
from upalm.ul2r.symbols import Symbols

CONFIG = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=4, d_head=8, d_ff=64, seq_len=256)
SYMBOLS = Symbols(tuple(range(511, 411, -1)), {})
MARKERS = SYMBOLS.sentinels
FORWARD = jax.jit(Decoder.__call__)
N_ROWS = 6  # every batch is padded to this, so that little is compiled


@pytest.fixture(scope="module")
def model():
    return DecodingModel.of(Decoder(CONFIG, key=jax.random.key(0)))


def full_forward(model, prompt, new, attention):
    """Logits that predict each of `new`, without any cache."""
    batch = Batch.empty(1, len(prompt) + len(new))
    row = batch.row(0)
    ul2r.write_segment(row, 0, ul2r.Example(np.asarray(prompt, int), np.asarray(new, int)), 1, 0, 0)
    logits = FORWARD(model, batch if attention == "prefix" else batch.causal())
    return np.array(logits[0, len(prompt) :])


def tokens_of(samples):
    return [[completion.tokens.tolist() for completion in of_task] for of_task in samples]


# --- Exactness ---


@pytest.mark.parametrize("attention", ["prefix", "causal"])
@pytest.mark.parametrize(
    "changes", [{}, {"n_kv_heads": 2}, {"norm": "layernorm"}, {"n_layers": 1}, {"d_ff": 96}], ids=repr
)
def test_cached_decode_is_the_full_forward(attention, changes):
    """Prompts of mixed length in one batch, each against its own uncached argmax."""
    model = Decoder(dataclasses.replace(CONFIG, **changes), key=jax.random.key(3))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 400, n).tolist() for n in (0, 1, 7, 40, 33)]
    found = decode(model, [Task(prompt, 12) for prompt in prompts], GenerationConfig(attention=attention))
    for prompt, [completion] in zip(prompts, found, strict=True):
        logits = full_forward(model, prompt, completion.tokens, attention)
        np.testing.assert_allclose(
            completion.log_probs, jax.nn.log_softmax(logits)[np.arange(len(logits)), completion.tokens], atol=1e-4
        )
        logits[:, [0, 1, 2]] = -np.inf  # never chosen, EOS by default
        assert np.array_equal(logits.argmax(-1), completion.tokens)
        [exact] = scoring.score(model, [(prompt, completion.tokens)], attention=attention)
        np.testing.assert_allclose(completion.log_probs, exact.log_probs, atol=1e-4)


def test_score_is_the_full_forward_whatever_the_batch():
    model = Decoder(CONFIG, key=jax.random.key(0))
    rng = np.random.default_rng(1)
    pairs = [(rng.integers(3, 400, a), rng.integers(3, 400, b)) for a, b in ((0, 5), (9, 1), (60, 20), (3, 70))]
    for batch_size in (1, 3, 8):
        for (prompt, target), got in zip(pairs, scoring.score(model, pairs, batch_size=batch_size), strict=True):
            log_probs = np.asarray(jax.nn.log_softmax(full_forward(model, prompt, target, "prefix")))
            np.testing.assert_allclose(got.log_probs, log_probs[np.arange(len(target)), target], atol=1e-4)
            assert np.array_equal(got.is_best, log_probs.argmax(-1) == target)


def test_weights_laid_out_for_decoding_give_the_same_products():
    model = Decoder(CONFIG, key=jax.random.key(5))
    rng = np.random.default_rng(2)
    for n_rows in (1, 16, 65):  # the layouts of few rows and of many
        prompts = [rng.integers(3, 400, 5).tolist() for _ in range(n_rows)]
        found = decode(model, [Task(p, 3) for p in prompts])
        for prompt, [completion] in list(zip(prompts, found, strict=True))[-3:]:
            logits = full_forward(model, prompt, completion.tokens, "prefix")
            logits[:, [0, 1, 2]] = -np.inf
            assert np.array_equal(logits.argmax(-1), completion.tokens)


# --- What a batch may not change ---

TASKS = st.lists(
    st.tuples(st.lists(st.integers(3, 400), max_size=20), st.integers(0, 3), st.integers(0, 6)),
    min_size=1,
    max_size=N_ROWS,
)


def tasks_of(drawn):
    """(prompt, gaps, limit): with gaps, each with that limit; without, so many tokens."""
    return [
        Task(prompt, n_gaps * (limit + 1) + 1 if n_gaps else limit, n_gaps, (limit,) * n_gaps)
        for prompt, n_gaps, limit in drawn
    ]


@settings(max_examples=25, deadline=None)
@given(TASKS, st.integers(0, 99), st.sampled_from([Sampler(), Sampler(1.0), Sampler(2.0, 50, 0.9, 0.01)]))
def test_a_batch_changes_no_row_and_no_grammar(model, drawn, seed, sampler):
    tasks = tasks_of(drawn)
    options = GenerationConfig(sampler=sampler, seed=seed), Rules(SYMBOLS), Padding(N_ROWS)
    together = tokens_of(decode(model, tasks, *options))
    met = []
    for task, [found] in zip(tasks, together, strict=True):
        if task.prompt not in met:  # equal prompts draw apart
            assert tokens_of(decode(model, [task], *options)) == [[found]]
        met.append(task.prompt)
        inside = [t for t in found if t in MARKERS]
        assert inside == list(MARKERS[: task.n_gaps])
        assert len(found) <= task.max_tokens


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_samples_of_a_prompt_share_its_cache(n_kv_heads):
    model = Decoder(dataclasses.replace(CONFIG, n_kv_heads=n_kv_heads), key=jax.random.key(4))
    tasks = [Task([5, 6, 7], 6), Task([8, 9], 6)]
    once, twice = (
        tokens_of(decode(model, tasks, GenerationConfig(sampler=Sampler(MIN_TEMPERATURE), num_samples=n)))
        for n in (1, 2)
    )
    assert twice == [[of_task[0]] * 2 for of_task in once]  # the likeliest tokens, whatever is drawn


def test_a_sample_depends_on_its_seed_and_number_alone(model):
    def draw(seed, num_samples=3, tasks=1):
        some = [Task([5, 6], 8)] * tasks
        return tokens_of(
            decode(model, some, GenerationConfig(sampler=Sampler(1.0), seed=seed, num_samples=num_samples))
        )

    assert draw(1) == draw(1) != draw(2)
    assert len({tuple(s) for s in draw(1)[0]}) == 3
    assert draw(1, num_samples=2)[0] == draw(1)[0][:2]
    assert len({tuple(s) for of_task in draw(1, tasks=2) for s in of_task}) == 6  # equal prompts draw apart


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(1.0)])
@pytest.mark.parametrize("every", [1, 3, 50])
def test_a_stream_grows_to_the_whole(model, sampler, every):
    tasks = [Task([5, 6, 7], 9), Task([8], 4)]
    whole = tokens_of(decode(model, tasks, GenerationConfig(sampler=sampler)))
    states = list(decode_stream(model, tasks, GenerationConfig(sampler=sampler), every=every))
    assert tokens_of(states[-1]) == whole
    for before, after in zip(states, states[1:], strict=False):
        for [a], [b] in zip(tokens_of(before), tokens_of(after), strict=True):
            assert b[: len(a)] == a
    assert all(completion.finished for [completion] in states[-1])


# --- Cost ---


def test_a_prompt_is_prefilled_once_for_all_its_samples(model, monkeypatch):
    seen = []
    prefill = decoding.prefill

    def spy(model, tokens, *args, **kwargs):
        found = prefill(model, tokens, *args, **kwargs)
        seen.append((tokens.shape, [x.shape for x in jax.tree.leaves(found[1])]))
        return found

    monkeypatch.setattr(decoding, "prefill", spy)
    decode(model, [Task([3] * 20, 10), Task([4], 10)], GenerationConfig(num_samples=5, sampler=Sampler(1.0)))
    [(tokens, caches)] = seen
    assert tokens == (2, 33)
    assert caches == [(2, 33 + 32, 8)] * 4  # keys and values of two layers, one head


def test_lengths_of_one_bucket_compile_once(model):
    counts = []
    for n_prompt, n_new in ((1, 1), (5, 20), (32, 32), (31, 7)):
        decode(model, [Task([7] * n_prompt, n_new)])
        counts.append([f._cache_size() for f in (decoding.prefill, decoding._first, decoding.advance)])
    assert counts[0] == counts[-1]


def test_no_step_is_run_past_the_longest_row(model, monkeypatch):
    steps = []
    completions = decoding._completions
    monkeypatch.setattr(
        decoding, "_completions", lambda state, *rest: steps.append(int(state.step)) or completions(state, *rest)
    )
    for tasks, longest in (([Task([5], 4), Task([5] * 9, 11)], 11), ([Task([5], 30, 2, (3, 1))], None)):
        steps.clear()
        found = decode(model, tasks, rules=Rules(SYMBOLS))
        assert max(steps) == (longest or max(len(c.tokens) for [c] in found)) < 30


# --- Bad input ---


def test_what_cannot_be_decoded_is_refused(model):
    with pytest.raises(ValueError, match="no prompts"):
        decode(model, [])
    with pytest.raises(ValueError, match=r"prompt 1 of 250 tokens with up to 9 new ones takes 260.*shorten it by 4"):
        decode(model, [Task([3], 1), Task([3] * 250, 9)])
    with pytest.raises(
        ValueError, match=r"prompt of 7 tokens with up to 5002 new ones takes 5010 .*: ask for 4754 fewer"
    ):
        decode(model, [Task([3] * 7, 5002, 1, (5000,))])
    with pytest.raises(ValueError, match=r"prompt of 251 tokens .*: shorten it by 3\.$"):
        decode(model, [Task([3] * 251, 7, 3, (1, 1, 1))])
    with pytest.raises(ValueError, match=r"fewer new tokens, by 343 together\.$"):
        decode(model, [Task([3] * 299, 299)])
    with pytest.raises(ValueError, match="every is 0, expected a whole number of at least 1"):
        next(decode_stream(model, [Task([3], 1)], every=0))


def test_nothing_to_add_adds_nothing(model):
    assert tokens_of(decode(model, [Task([3], 0), Task([], 2, ANYTHING)]))[0] == [[]]


def test_a_model_in_bf16_decodes_like_itself():
    """Log-probabilities agree with `score` to bf16's precision."""
    model = Decoder(dataclasses.replace(CONFIG, compute_dtype="bfloat16"), key=jax.random.key(0))
    [[completion]] = decode(model, [Task([3, 4, 5], 16)])
    [exact] = scoring.score(model, [([3, 4, 5], completion.tokens)])
    np.testing.assert_allclose(completion.log_probs, exact.log_probs, atol=0.1)
    assert jnp.isfinite(completion.log_probs).all()


@pytest.mark.parametrize("tied_head", [True, False])
def test_heads_multiply_in_compute_precision(tied_head):
    """Logits in bf16 are products of bf16 operands, summed in fp32: as in the loss, and the same of both models."""
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16", tied_head=tied_head)
    model = Decoder(config, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 32), jnp.bfloat16)
    decoding_model = DecodingModel.of(model)
    assert decoding_model.embed.dtype == jnp.bfloat16 and (decoding_model.head is None) == tied_head
    text = jax.jit(DecodingModel.logits).lower(decoding_model, x).as_text()
    assert "tensor<512x32xf32>" not in text and "(tensor<512x32xbf16>, tensor<32x2xbf16>) -> tensor<512x2xf32>" in text
    normed = normalise(x, model.norm, config)
    table = np.asarray(model.head_table.astype(jnp.bfloat16), np.float32)
    expected = np.asarray(normed, np.float32) @ table.T * config.head_scale
    for logits in (decoding_model.logits(x), model.logits(normed)):
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
