"""Infilling of prose."""

import jax
import pytest

from upalm.evals.infilling import prose
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


def whole(row):
    return row.parts[0] + "".join(s + p for s, p in zip(row.spans, row.parts[1:], strict=True))


def test_oracle_is_perfect_and_order_of_spans_matters():
    def scores(predictions):
        return {name: estimate.mean for name, estimate in prose.match_estimates(ROWS, predictions).items()}

    oracle = scores([row.spans for row in ROWS])
    assert set(oracle.values()) == {1.0} and {"em_all", "em_1", "em_2_5", "rougeL"} <= oracle.keys()
    assert "em_6_10" not in oracle  # no such spans
    assert set(scores([("", "")] * 2).values()) == {0.0}
    swapped = scores([row.spans[::-1] for row in ROWS])
    assert swapped["em"] == swapped["em_all"] == 0
    one_right = scores([("brown", ""), ("", "")])
    assert (one_right["em"], one_right["em_all"], one_right["em_1"]) == (0.25, 0, 1)


@pytest.mark.parametrize("n_spans", [1, 3])
def test_prose_is_cut_as_defined(n_spans, source_text):
    texts = [" ".join(source_text.split()[i * 80 : (i + 1) * 80]) for i in range(40)] + ["too short"]
    cut = prose.Cut(n_spans)
    rows, n_short = prose.cut_rows("test", texts, cut)
    assert (len(rows), n_short) == (40, 1)
    for row, text in zip(rows, texts, strict=False):
        assert whole(row) == text
        assert all(1 <= len(span.split()) <= 10 for span in row.spans)
        assert len(row.parts[0].split()) >= 5 and len(row.parts[-1].split()) >= 5
        assert all(len(part.split()) >= 3 for part in row.parts[1:-1])
    assert {len(span.split()) for row in rows for span in row.spans} >= {1, 10}
    assert rows[:7] == prose.cut_rows("test", texts[:7], cut)[0]
    assert rows != prose.cut_rows("other", texts, cut)[0]


@pytest.mark.parametrize("options", [{"n_spans": 0}, {"max_words": 0}, {"margin": -1}, {"apart": -1}])
def test_cuts_without_spans_are_refused(options):
    with pytest.raises(ValueError, match="at least one span of at least one word"):
        prose.Cut(**options)


def test_rows_that_do_not_fit_are_counted(tokenizer, model):
    rows = [*ROWS, Gap(("word " * 2000, "end"), ("x",))]
    estimates, n_too_long = prose.evaluate(model, tokenizer, rows)
    assert n_too_long == 1 and estimates["em_all"].n == 2
    with pytest.raises(ValueError, match="none of 1 rows fits the model's 512 tokens"):
        prose.evaluate(model, tokenizer, rows[2:])
