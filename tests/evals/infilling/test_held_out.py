"""Measurements of a model on held-out text."""

import jax
import pytest

from upalm.data.readers import Document
from upalm.evals.infilling.held_out import compare, cut_gaps, cut_kinds, measure
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder


@pytest.fixture
def model():
    shape = ModelConfig(vocab_size=512, d_model=16, n_layers=1, n_heads=2, d_head=8, d_ff=32, seq_len=4096)
    return Decoder(shape, key=jax.random.key(0))


@pytest.fixture
def documents(source_text):
    return [Document(str(at), source_text[at : at + 9000]) for at in range(0, 36_000, 9000)]


def test_whole_texts_are_cut_at_the_given_length(tokenizer, model, documents):
    lines, words = cut_gaps(documents, tokenizer, 512, 4)
    measured = [
        measure(model, tokenizer, documents, lines, words, seq_len=seq_len, n_decoded=1) for seq_len in (512, 1024)
    ]
    short, long = (m.causal.n_bytes for m in measured)
    assert len(short) == 4 and (short < 4 * 512).all() and (short < long).all()
    assert measured[0].infill.n_bytes.tolist() == measured[1].infill.n_bytes.tolist()


def test_further_kinds_of_gaps_have_metrics_of_their_own(tokenizer, model, documents):
    lines, words = cut_gaps(documents, tokenizer, 512, 4)
    kinds = cut_kinds(documents, tokenizer, 512, words)
    assert kinds["multi_span"] == words and [row.spans for row in kinds["few_words"]] == [r.spans[1:2] for r in words]
    measured = measure(model, tokenizer, documents, lines, words, seq_len=512, n_decoded=1, kinds=kinds)
    estimates = measured.estimates()
    for kind in kinds:
        left_only, infill = (estimates[f"{kind}_{name}"].mean for name in ("left_only_bits_per_byte", "bits_per_byte"))
        assert abs(left_only - infill - estimates[f"{kind}_gain"].mean) < 1e-6
    assert {e.mean for e in compare(measured, measured).values()} == {0.0}
    assert compare(measured, measured).keys() >= {"new_name_bits_per_byte", "multi_span_bits_per_byte"}
