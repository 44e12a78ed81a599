"""HumanEval infilling."""

import os
from pathlib import Path

import jax
import pytest

from upalm.evals.infilling import humaneval
from upalm.evals.infilling.gaps import Gap
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder

DATA = Path(os.environ.get("UPALM_DATA", Path(__file__).parents[4] / "shared" / "data")) / "humaneval_infilling"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the HumanEval infilling files are not in {DATA}")


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=1, n_heads=2, d_head=16, d_ff=64, seq_len=512)
    return Decoder(config, key=jax.random.key(0))


def test_humaneval_reports_continuations_apart():
    rows = [Gap(("def f():\n", "\n# end"), ("    return 1\n",)), Gap(("def g():\n", ""), ("    return 2\n",))]
    benchmark = humaneval.Benchmark("single-line", rows, 0)
    found = humaneval.match_estimates(benchmark, ["    return 1\n    junk", "return 2"])
    assert (found["em_line"].mean, found["em_strip"].mean) == (0.5, 1)
    assert (found["em_line_with_suffix"].mean, found["em_line_without_suffix"].mean) == (1, 0)
    perfect = humaneval.match_estimates(benchmark, ["    return 1", "    return 2"])
    assert [perfect[name].mean for name in ("em_line", "edit_sim")] == [1, 1]


def test_humaneval_of_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'one-line' of HumanEval infilling: did you mean 'single-line'"):
        humaneval.load(tmp_path, "one-line")
    with pytest.raises(ValueError, match="get it from"):
        humaneval.load(tmp_path, "single-line")


@needs_data
@pytest.mark.parametrize(
    ("kind", "n_rows", "n_blank", "n_without_suffix", "exact"),
    [
        ("single-line", 792, 0, 124, "em_line"),
        ("multi-line", 4471, 0, None, "em_lines"),
        ("random-span", 1255, 45, None, "em"),
    ],
)
def test_humaneval_rows_are_the_published_ones(kind, n_rows, n_blank, n_without_suffix, exact):
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
def test_humaneval_runs_end_to_end(tokenizer, model):
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
