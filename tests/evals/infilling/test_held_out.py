"""Measurements of a model on held-out text."""

from dataclasses import replace

import jax
import pytest

from upalm.data.readers import Document
from upalm.evals.infilling.gaps import Gap
from upalm.evals.infilling.held_out import (
    compare,
    cut_gaps,
    cut_kinds,
    describe_repeats,
    describe_shortfall,
    measure,
)
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


def test_models_are_compared_on_the_same_rows_alone(tokenizer, model, documents):
    lines, words = cut_gaps(documents, tokenizer, 512, 5)
    ours, other = (
        measure(model, tokenizer, documents, some, words[:2], seq_len=512, n_decoded=1) for some in (lines[:2], lines)
    )
    with pytest.raises(ValueError, match=r"infill_bits.* 2 rows of .* 5 rows of .*, \.\.\. bytes, .*: cut them once"):
        compare(ours, other)
    swapped = ours.causal._replace(n_bytes=ours.causal.n_bytes[::-1])
    with pytest.raises(ValueError, match="causal_bits_per_byte: measured on"):
        compare(ours, replace(ours, causal=swapped))


def test_gaps_that_are_few_or_repeat_are_counted():
    rows = [Gap(("a", "b"), (str(i),)) for i in range(4)]
    assert describe_shortfall({"line": rows, "new_name": rows}, 4, 4, 64) == ""
    assert describe_repeats({"line": rows, "new_name": rows}) == ""
    found = describe_shortfall({"line": rows, "new_name": rows[:2]}, 9, 5, 64)
    assert "4 of 9 single lines, 2 of 9 new words, so that 4 lines are decoded instead of 5. " in found
    assert "rows of 64 tokens" in found
    found = describe_repeats({"line": rows, "new_name": [*rows, *rows[:3]]})
    assert found.endswith(": 4 of 7 new words are distinct.")
