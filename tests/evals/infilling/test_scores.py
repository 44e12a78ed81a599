"""Teacher-forced scores of gaps."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from upalm.data.readers import Document
from upalm.evals.infilling import gaps, scores
from upalm.evals.infilling.gaps import Gap
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder

ROWS = [
    Gap(("a quick ", " fox ", " the lazy dog"), ("brown", "jumps over")),
    Gap(("it was ", " of ", "."), ("the best", "all times")),
]


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=1, n_heads=2, d_head=16, d_ff=64, seq_len=512)
    return Decoder(config, key=jax.random.key(0))


@pytest.fixture(scope="module")
def uniform(model):
    """Gives every token the same probability, whatever it sees."""
    return jax.tree.map(lambda x: x * 0, model)


def documents(source_text):
    return [Document(f"d{i}", source_text[i * 5000 : (i + 1) * 5000]) for i in range(10)]


def test_uniform_model_costs_log2_vocabulary_per_span_token(tokenizer, source_text, uniform):
    """A model that gives every token the same probability costs log2(V) bits a span token, whatever the format."""
    rows = gaps.cut_lines(documents(source_text), 5, lambda row: True)
    n_tokens = sum(len(tokenizer.encode(row.spans[0])) for row in rows)
    found = scores.score_spans(uniform, tokenizer, rows, "nlu")
    assert found.n_tokens.sum() == n_tokens
    estimates = found.estimates()
    assert estimates["span_nll_per_token"].mean == pytest.approx(np.log(512), rel=1e-5)
    assert estimates["closing_nll"].mean == pytest.approx(np.log(512), rel=1e-5)
    left_only = scores.score_left_only(uniform, tokenizer, rows, "none", "causal")
    for bits in (found.bits, left_only):
        assert bits.bits.sum() == pytest.approx(9 * n_tokens, rel=1e-5)
        assert bits.n_bytes.sum() == sum(len(row.spans[0].encode()) for row in rows)
    assert scores.infill_gain(left_only, found.bits).mean == pytest.approx(0, abs=1e-5)


def test_token_accuracy_counts_best_tokens(tokenizer, model):
    rows = [Gap(("the ", " one"), ("best",)), Gap(("x", "y"), ("z",))]
    found = scores.score_spans(model, tokenizer, rows, "none")
    assert (found.n_best <= found.n_tokens).all()
    everything = jax.tree.map(lambda x: x * 0, model)  # all are best where all are equal
    found = scores.score_spans(everything, tokenizer, rows, "none")
    assert (found.n_best == found.n_tokens).all()


def test_closing_cost_is_apart_from_the_spans(tokenizer, model):
    """Two gaps close with a sentinel and with EOS, both scored apart from the spans."""
    [row] = ROWS[:1]
    found = scores.score_spans(model, tokenizer, [row], "none")
    assert found.n_tokens[0] == sum(len(tokenizer.encode(span)) for span in row.spans)
    assert found.closing_nll[0] > 0


def test_several_gaps_continue_from_all_text_before(tokenizer, model):
    """From the left, a row of two gaps costs what each span costs after the true text before it."""
    row = ROWS[0]
    (a, b, _), (first, second) = row.parts, row.spans
    apart = [Gap((a, ""), (first,)), Gap((a + first + b, ""), (second,))]
    together = scores.score_left_only(model, tokenizer, [row], "none", "causal")
    each = scores.score_left_only(model, tokenizer, apart, "none", "causal")
    assert together.bits == pytest.approx(each.bits.sum(), rel=1e-5)
    assert together.n_bytes == each.n_bytes.sum()


def test_gaps_are_scored_under_the_given_mask(tokenizer, model):
    """Under a causal mask the text before a gap does not see the text after it, which the second layer notices."""
    model = Decoder(replace(model.config, n_layers=2), key=jax.random.key(0))
    prefix, causal = (scores.score_spans(model, tokenizer, ROWS, "nlu", attention=a).nll for a in ("prefix", "causal"))
    assert np.isfinite(causal).all() and not np.allclose(prefix, causal, rtol=1e-4)
