"""Infilling metrics: an oracle is perfect, silence is worth nothing, order matters, blanks are not rows."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upalm.data.sources import Document
from upalm.evals import bootstrap, text_metrics
from upalm.evals.infilling import gaps, humaneval, prose, scores
from upalm.evals.infilling.gaps import Gap
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder

CONFIG = ModelConfig(vocab_size=512, d_model=32, n_layers=1, n_heads=2, d_head=16, d_ff=64, seq_len=512)
DATA = Path(os.environ.get("UPALM_DATA", Path(__file__).parents[3] / "shared" / "data")) / "humaneval_infilling"
ROWS = [
    Gap(("a quick ", " fox ", " the lazy dog"), ("brown", "jumps over")),
    Gap(("it was ", " of ", "."), ("the best", "all times")),
]


@pytest.fixture(scope="module")
def model():
    return Decoder(CONFIG, key=jax.random.key(0))


@pytest.fixture(scope="module")
def uniform(model):
    """Gives every token the same probability, whatever it sees."""
    return jax.tree.map(lambda x: x * 0, model)


def documents(source_text):
    return [Document(f"d{i}", source_text[i * 5000 : (i + 1) * 5000]) for i in range(10)]


# --- Likeness ---


@pytest.mark.parametrize(
    "alike",
    [*prose._ALIKE.values(), text_metrics.edit_similarity, *[f for k in humaneval._EXACT.values() for f in k.values()]],
)
@given(text=st.text(max_size=30), other=st.text(max_size=30))
def test_equal_texts_are_alike_and_likeness_is_a_share(alike, text, other):
    assert alike(text, text) == 1
    assert 0 <= alike(text, other) <= 1


@given(st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_edit_distance_is_the_recursion(a, b):
    def distance(i, j):
        if min(i, j) == 0:
            return max(i, j)
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    assert text_metrics._edit_distance(a[:5], b[:5]) == distance(len(a[:5]), len(b[:5]))


@pytest.mark.parametrize(
    ("alike", "prediction", "gold", "expected"),
    [
        (text_metrics.exact_line, "    return x\nmore", "    return x  ", True),
        (text_metrics.exact_line, "return x", "    return x", False),
        (text_metrics.exact_stripped_line, "return x", "    return x", True),
        (text_metrics.exact_lines, "\n  a \n  b\n\n", "  a\n  b", True),
        (text_metrics.exact_lines, "  a\n\n  b", "  a\n  b", False),
        (text_metrics.exact_text, "x \n", "x", True),
        (text_metrics.exact_text, " x", "x", False),
        (text_metrics.exact_words, "The  Best,", "the best", True),
        (text_metrics.rouge_l, "лучшее время", "лучшее время", 1.0),  # other scripts count
        (text_metrics.f1, "", "a", 0.0),
    ],
)
def test_likeness(alike, prediction, gold, expected):
    assert alike(prediction, gold) == expected


# --- Predictions ---


def test_an_oracle_is_perfect_silence_is_nothing_and_order_matters():
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


def test_humaneval_scores_and_sets_plain_continuation_apart():
    rows = [Gap(("def f():\n", "\n# end"), ("    return 1\n",)), Gap(("def g():\n", ""), ("    return 2\n",))]
    benchmark = humaneval.Measurement("single-line", rows, 0)
    found = humaneval.match_estimates(benchmark, ["    return 1\n    junk", "return 2"])
    assert (found["em_line"].mean, found["em_strip"].mean) == (0.5, 1)
    assert (found["em_line_with_suffix"].mean, found["em_line_without_suffix"].mean) == (1, 0)


# --- Teacher-score_spans ---


def test_bits_are_those_of_the_spans_alone(tokenizer, source_text, uniform):
    """A model that gives every token the same probability costs log2(V) bits a span token, whatever the format."""
    rows = gaps.line_rows(documents(source_text), 5, lambda row: True)
    n_tokens = sum(len(tokenizer.encode(row.spans[0])) for row in rows)
    found = scores.score_spans(uniform, tokenizer, rows, "nlu")
    assert found.n_tokens.sum() == n_tokens
    estimates = found.estimates()
    assert estimates["span_nll_per_token"].mean == pytest.approx(np.log(512), rel=1e-5)
    assert estimates["closing_nll"].mean == pytest.approx(np.log(512), rel=1e-5)
    left_only = scores.left_only_bits(uniform, tokenizer, rows, "none", "causal")
    for bits in (found.bits, left_only):
        assert bits.bits.sum() == pytest.approx(9 * n_tokens, rel=1e-5)
        assert bits.n_bytes.sum() == sum(len(row.spans[0].encode()) for row in rows)
    assert scores.infill_gain(left_only, found.bits).mean == pytest.approx(0, abs=1e-5)


def test_token_accuracy_counts_what_the_model_would_choose(tokenizer, model):
    rows = [Gap(("the ", " one"), ("best",)), Gap(("x", "y"), ("z",))]
    found = scores.score_spans(model, tokenizer, rows, "none")
    assert (found.n_best <= found.n_tokens).all()
    everything = jax.tree.map(lambda x: x * 0, model)  # all are best where all are equal
    found = scores.score_spans(everything, tokenizer, rows, "none")
    assert (found.n_best == found.n_tokens).all()


def test_every_closing_counts_once_for_its_row(tokenizer, model):
    """Two gaps close with a sentinel and with EOS, both scored apart from the spans."""
    [row] = ROWS[:1]
    found = scores.score_spans(model, tokenizer, [row], "none")
    assert found.n_tokens[0] == sum(len(tokenizer.encode(span)) for span in row.spans)
    assert found.closing_nll[0] > 0


# --- Rows ---


def test_rows_are_cut_from_the_text(source_text):
    lines = gaps.line_rows(documents(source_text), 30, lambda row: True)
    words = gaps.word_rows(documents(source_text), 30, lambda row: True)
    assert len(lines) == len(words) == 30
    for row in (*lines, *words):
        assert whole(row) in source_text
    assert all("\n" not in row.spans[0] and row.parts[0].endswith("\n") for row in lines)
    assert all(len(row.spans) == 3 for row in words)
    assert lines[:10] == gaps.line_rows(documents(source_text), 10, lambda row: True)


def whole(row):
    return row.parts[0] + "".join(s + p for s, p in zip(row.spans, row.parts[1:], strict=True))


def test_shuffled_suffixes_change_the_right_side_only(source_text):
    rows = gaps.line_rows(documents(source_text), 20, lambda row: True)
    for row, other in zip(rows, gaps.shuffled_suffixes(rows), strict=True):
        assert (other.parts[0], other.spans) == (row.parts[0], row.spans)
        assert other.parts[1] != row.parts[1]


@pytest.mark.parametrize("n_spans", [1, 3])
def test_prose_is_cut_as_defined_and_every_model_sees_the_same(n_spans, source_text, tmp_path):
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
    prose.save(tmp_path / "rows.jsonl", rows)
    assert prose.load(tmp_path / "rows.jsonl") == rows


def test_lines_that_are_no_rows_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    for line, message in (
        ("{}", "line 2: field 'parts' is missing"),
        ('{"parts": ["a"], "spans": ["b"]}', "line 2: 1 parts"),
    ):
        path.write_text('{"parts": ["a", "c"], "spans": ["b"]}\n' + line + "\n")
        with pytest.raises(ValueError, match=message):
            prose.load(path)


# --- Whole evaluations ---


def test_rows_that_do_not_fit_are_counted(tokenizer, model):
    rows = [*ROWS, Gap(("word " * 2000, "end"), ("x",))]
    estimates, n_too_long = prose.evaluate(model, tokenizer, rows)
    assert n_too_long == 1 and estimates["em_all"].n == 2
    with pytest.raises(ValueError, match="none of 1 rows fits the model's 512 tokens"):
        prose.evaluate(model, tokenizer, rows[2:])


def test_humaneval_of_another_kind_or_nowhere_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'one-line': choose one of single-line"):
        humaneval.load(tmp_path, "one-line")
    with pytest.raises(ValueError, match="get it from"):
        humaneval.load(tmp_path, "single-line")


needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the HumanEval infilling files are not in {DATA}")


@needs_data
@pytest.mark.parametrize(
    ("kind", "n_rows", "n_blank", "n_without_suffix", "exact"),
    [
        ("single-line", 792, 0, 124, "em_line"),
        ("multi-line", 4471, 0, None, "em_lines"),
        ("random-span", 1255, 45, None, "em"),
    ],
)
def test_humaneval_rows_are_the_published_ones_and_an_oracle_solves_them(
    kind, n_rows, n_blank, n_without_suffix, exact
):
    benchmark = humaneval.load(DATA, kind)
    assert (len(benchmark.rows), benchmark.n_blank) == (n_rows, n_blank)
    rows = benchmark.rows[:800]
    gold = [row.spans[0] for row in rows]
    found = humaneval.match_estimates(benchmark._replace(rows=rows), gold)
    assert all(estimate.mean == 1 for estimate in found.values()), found
    if n_without_suffix:
        assert found[f"{exact}_without_suffix"].n == n_without_suffix
    silent = humaneval.match_estimates(benchmark._replace(rows=rows), [""] * len(rows))
    assert silent[exact].mean == 0


@needs_data
def test_always_returning_false_has_the_known_score():
    benchmark = humaneval.load(DATA, "single-line")
    found = humaneval.match_estimates(benchmark, ["    return False"] * len(benchmark.rows))
    assert found["em_strip"].mean == pytest.approx(0.048, abs=0.002)


@needs_data
def test_humaneval_end_to_end(tokenizer, model):
    benchmark = humaneval.load(DATA, "single-line")
    found = humaneval.evaluate(model, tokenizer, benchmark._replace(rows=benchmark.rows[:20]))
    assert len(found.predictions) + found.n_too_long == 20
    assert {
        "em_line",
        "em_strip",
        "edit_sim",
        "span_bits_per_byte",
        "closing_nll",
        "format_ok",
    } <= found.estimates.keys()
    assert not any("\n" in prediction for prediction in found.predictions)


def test_bootstrap_interval_covers():
    """95% of intervals hold the true mean, within three standard errors."""
    rng = np.random.default_rng(0)
    inside = [e.low <= 1.0 <= e.high for e in (bootstrap.mean(rng.normal(1, 1, 80)) for _ in range(300))]
    assert 0.91 < np.mean(inside) < 0.99
