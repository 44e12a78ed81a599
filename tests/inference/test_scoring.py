"""Choices scored from one prefill are what the whole model says of each by itself."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upalm.inference import scoring
from upalm.inference.decoding import prefill
from upalm.inference.scoring import rank
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder
from upalm.ul2r.rows import Batch, write_segment
from upalm.ul2r.spans import Example

CONFIG = ModelConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, d_head=8, d_ff=64, seq_len=128)
IDS = st.lists(st.integers(3, 63), max_size=40)


@pytest.fixture(scope="module")
def model():
    return Decoder(CONFIG, key=jax.random.key(0))


def by_itself(model, prompt, continuation, attention, n_given):
    """One row, no bucket, no cache: the reference."""
    batch = Batch.empty(1, len(prompt) + len(continuation))
    example = Example(np.array(prompt, np.int32), np.array(continuation, np.int32))
    write_segment(batch.row(0), 0, example, 1, 0, 0)
    logits = np.asarray(jax.jit(Decoder.__call__)(model, batch if attention == "prefix" else batch.causal()))[0]
    logits = logits[len(prompt) :].astype(np.float64)[n_given:]
    counted = np.array(continuation[n_given:])
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_probs, counted[:, None], -1)[:, 0]
    return picked.sum(), len(counted), bool((picked >= log_probs.max(-1)).all())


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.tuples(IDS, st.lists(st.lists(st.integers(3, 63), min_size=2, max_size=20), max_size=4)), min_size=1),
    st.sampled_from(["prefix", "causal"]),
    st.integers(0, 1),
    st.sampled_from([64, 4096]),
)
def test_ranking_in_batches_equals_ranking_alone(model, asked, attention, n_given, tokens_per_batch):
    prompts, continuations = [p for p, _ in asked], [c for _, c in asked]
    options = {"attention": attention, "n_given": n_given, "tokens_per_batch": tokens_per_batch}
    found = dict(rank(model, prompts, continuations, **options))
    assert sorted(found) == list(range(len(asked)))
    for i, (prompt, some) in enumerate(asked):
        assert len(found[i]) == len(some)
        for got, continuation in zip(found[i], some, strict=True):
            log_prob, n, is_greedy = by_itself(model, prompt, continuation, attention, n_given)
            assert got.log_prob == pytest.approx(log_prob, abs=2e-4)
            assert (got.n_tokens, got.is_greedy) == (n, is_greedy)


@pytest.mark.parametrize("attention", ["prefix", "causal"])
def test_scores_are_the_same_in_fewer_rows_at_once(model, attention, monkeypatch):
    rng = np.random.default_rng(0)
    lengths = [(3, 5), (40, 2), (60, 60), (0, 1), (30, 34), (90, 8), (64, 1), (5, 20), (10, 70)]
    examples = [tuple(rng.integers(3, 64, n) for n in pair) for pair in lengths]
    whole = scoring.score(model, examples, attention=attention, batch_size=8)
    shapes, score_batch = [], scoring._score

    def recorded(model, batch, places):
        shapes.append((*batch.target_tokens.shape, places.shape[1]))
        return score_batch(model, batch, places)

    monkeypatch.setattr(scoring, "MAX_LOGITS", 3 * 64 * 64)
    monkeypatch.setattr(scoring, "MAX_POSITIONS", 256)
    monkeypatch.setattr(scoring, "_score", recorded)
    found = scoring.score(model, examples, attention=attention, batch_size=8)
    assert shapes == [(6, 32, 32), (3, 64, 64), (2, 128, 64), (2, 128, 64), (2, 96, 96)]  # the last: with logits
    for (prompt, target), a, b in zip(examples, whole, found, strict=True):
        assert np.allclose(a.log_probs, b.log_probs, atol=2e-4) and len(b.log_probs) == len(target)
        assert b.log_prob == pytest.approx(by_itself(model, prompt, target, attention, 0)[0], abs=2e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, expected a whole number of at least 1"),
        ({"batch_size": True}, "batch_size is True, expected a whole number of at least 1"),
    ],
)
def test_bad_options_of_scores(model, options, message):
    with pytest.raises(ValueError, match=message):
        scoring.score(model, [([3], [4])], **options)


def test_choices_of_one_token_are_a_distribution(model):
    [(_, likelihoods)] = rank(model, [[5, 6]], [[[t] for t in range(64)]])
    assert np.exp([x.log_prob for x in likelihoods]).sum() == pytest.approx(1, abs=1e-5)
    assert sum(x.is_greedy for x in likelihoods) == 1


def test_a_second_ranking_compiles_nothing(model, monkeypatch):
    rng, calls = np.random.default_rng(0), []

    def some():
        prompts = [rng.integers(3, 64, n).tolist() for n in (3, 30, 31, 60)]
        return prompts, [[rng.integers(3, 64, 5).tolist() for _ in range(4)] for _ in prompts]

    def spy(*arguments, **options):
        calls.append(len(arguments[1]))
        return prefill(*arguments, **options)

    monkeypatch.setattr(scoring, "prefill", spy)
    list(rank(model, *some()))
    n_compiled = prefill._cache_size(), scoring._likelihoods._cache_size()
    n_calls = len(calls)
    list(rank(model, *some()))
    assert (prefill._cache_size(), scoring._likelihoods._cache_size()) == n_compiled
    assert len(calls) == 2 * n_calls == 4  # two lengths of prompts, whatever the choices


@pytest.mark.parametrize(
    ("prompts", "continuations", "n_given", "message"),
    [
        ([[3]], [[[4], []]], 0, "continuation 1 of prompt 0 is empty"),
        ([[3]], [[[4]]], 1, "continuation 0 of prompt 0 is empty"),
        ([[3] * 120], [[[4] * 20]], 0, "takes 140 tokens, the model's rows have 128"),
    ],
)
def test_bad_input(model, prompts, continuations, n_given, message):
    with pytest.raises(ValueError, match=message):
        list(rank(model, prompts, continuations, n_given=n_given))
