"""The scaling analysis: the paper's own table, made-up curves whose answer is known, and the command."""

import json
import sys

import jax
import numpy as np
import pytest
from support.runs import MODEL

from upalm.checkpoints.folder import export
from upalm.cli import main
from upalm.evals.savings import (
    Curve,
    Point,
    build_paper_points,
    build_points,
    compare_continuations,
    describe_checkpoint,
    estimate_savings,
)
from upalm.evals.savings_report import place_points
from upalm.evals.scorer import Scorer
from upalm.model.palm import Decoder


def test_paper_table_gives_about_2_at_the_middle_checkpoint():
    found = estimate_savings(build_paper_points())
    assert [(s.family, round(s.start_flops / 1e21)) for s in found] == [("ul2r", n) for n in (590, 1066, 2527)]
    early, middle, late = found
    assert 1.9 < middle.rate < 2.4 and middle.low < 2.35 < middle.bound
    assert middle.bound == pytest.approx(2.35, abs=0.02)  # the headline: 2500 against 1075 zFLOPs
    assert (middle.start_score, middle.score) == pytest.approx((65.93, 68.32), abs=0.01)
    assert 1.9 < early.rate < 2.4
    assert late.flops_with_attention == pytest.approx(2.56e24, rel=0.003)  # PaLM Table 22
    assert np.isinf(late.rate) and str(late).startswith("over 1.00x")  # no later PaLM to compare with


def test_curve_is_monotone_through_noise():
    """Isotonic regression pools what falls; between checkpoints the score is linear in log FLOPs."""
    curve = Curve.fit(np.array([1.0, 10.0, 100.0, 1000.0]), np.array([0.0, 2.0, 1.0, 3.0]))
    assert curve.scores.tolist() == [0, 1.5, 1.5, 3]
    assert curve.find_flops(0.75) == pytest.approx(10**0.5)
    assert curve.find_flops(2.25) == pytest.approx(10**2.5)
    assert curve.find_flops(1.5) == pytest.approx(10)  # where it first has it
    assert (curve.find_flops(0.0), curve.find_flops(-1.0), curve.find_flops(3.1)) == (1, 0, np.inf)
    twice = Curve.fit(np.array([1.0, 1.0, 10.0]), np.array([0.0, 2.0, 3.0]))
    assert (twice.flops.tolist(), twice.scores.tolist()) == ([1, 10], [1, 3])


def grid(slope, seeds, noise, rng):
    """Scores that rise by `slope` a decade; UL2R is worth a factor 3 in compute, the control nothing."""

    def score(flops):
        return slope * np.log10(flops) + noise * rng.standard_normal()

    def point(family, start, flops, worth, seed):
        mixture, scores = "ul2r" if family == "ul2r" else "causal", {f"t{i}": score(flops * worth) for i in range(8)}
        return Point(10, family, mixture, start, flops, flops, seed, scores)

    starts = [1e3, 1e4, 1e5]
    base = [point("causal", s, s, 1, 0) for s in (*starts, 1e6)]
    forks = [
        point(family, s, 1.1 * s, worth, seed)
        for s in starts
        for seed in range(seeds)
        for family, worth in (("ul2r", 3), ("control", 1))
    ]
    return base + forks


def test_known_savings_are_recovered():
    for found in estimate_savings(grid(1, 3, 0, np.random.default_rng(0))):
        assert found.rate == pytest.approx(3 if found.family == "ul2r" else 1)
        assert found.low == pytest.approx(found.rate) and found.high == pytest.approx(found.rate)
    inside = [
        s.low <= (3 if s.family == "ul2r" else 1) <= s.high
        for draw in range(8)
        for s in estimate_savings(grid(1, 5, 0.3, np.random.default_rng(draw)))
    ]
    assert np.mean(inside) > 0.75  # of 48 intervals; few tasks make them narrow


def test_ul2r_is_compared_with_the_control_in_pairs():
    points = grid(1, 3, 0, np.random.default_rng(0))
    found = compare_continuations([p for p in points if (p.family, p.start_flops, p.seed) != ("control", 1e5, 2)])
    assert [(d.start_flops, d.n_pairs) for d in found] == [(1e3, 3), (1e4, 3), (1e5, 2), (None, 8)]
    assert [d.mean for d in found] == pytest.approx([np.log10(3)] * 4)
    noisy = compare_continuations(grid(1, 3, 0.3, np.random.default_rng(0)))
    assert noisy[-1].mean == pytest.approx(np.mean([d.mean for d in noisy[:3]]))
    assert 0.02 < noisy[-1].se < 0.1  # 0.05 = 0.3 * sqrt(2 / (8 tasks * 9 pairs)) is expected
    unequal = [p._replace(flops=2 * p.flops) if p.family == "control" else p for p in points]
    assert compare_continuations(unequal) == []


def test_mixtures_and_lengths_are_estimated_apart():
    points = grid(1, 2, 0, np.random.default_rng(0))
    forks = [p for p in points if p.family != "causal"]
    other = [p._replace(mixture="prefix_lm", scores={t: 0.0 for t in p.scores}) for p in forks if p.family == "ul2r"]
    longer = [p._replace(flops=2 * p.start_flops) for p in forks]
    found = estimate_savings(points + other + longer)
    alone = estimate_savings(points)
    assert [s for s in found if s.mixture != "prefix_lm" and s.flops < 2 * s.start_flops] == alone
    assert [(s.mixture, s.n_seeds) for s in found[:5]] == [
        (m, 2) for m in ("causal", "causal", "prefix_lm", "ul2r", "ul2r")
    ]
    differences = compare_continuations(points + other + longer)
    of_start = [(d.mixture, d.flops, d.n_pairs) for d in differences if d.start_flops == 1e3]
    assert of_start == [("prefix_lm", 1.1e3, 2), ("ul2r", 1.1e3, 2), ("ul2r", 2e3, 2)]
    assert [d.n_pairs for d in differences if d.start_flops is None] == [6, 12]
    assert [d for d in differences if d.flops == 1.1e3 and d.mixture == "ul2r"] == compare_continuations(points)[:1]
    assert len(place_points(points + other + longer)) == 4 + 3 * 5  # no two are averaged


@pytest.mark.parametrize("estimate", [estimate_savings, compare_continuations])
def test_the_same_training_twice_is_refused(estimate):
    points = grid(1, 2, 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"2 results .* mixture ul2r, from 1e.04 to 1.1e.04 FLOPs, seed 1\): give"):
        estimate([*points, next(p for p in points if p[1:5] == ("ul2r", "ul2r", 1e4, 1.1e4) and p.seed == 1)])


def test_interval_of_one_task_and_seed_is_unknown():
    points = [p._replace(scores={"t0": p.scores["t0"]}) for p in grid(1, 1, 0, np.random.default_rng(0))]
    found = estimate_savings(points)
    assert np.isnan([(s.low, s.high) for s in found]).all()
    assert str(found[1]) == "3.00x [unknown]"


def result(mixtures, scores, seed=0, suite="s", n_params=10, infill=1.0):
    stages = [{"mixture": m, "n_tokens": n, "seed": seed} for m, n in mixtures]
    return {
        **{"suite": suite, "checkpoint": f"runs/{mixtures}"},
        "compute": {"n_params": n_params, "stages": stages, "flops_with_attention": 7.0 * sum(n for _, n in mixtures)},
        "tasks": {name: {"score": score} for name, score in scores.items()},
        "measures": {"infill_bits_per_byte": {"mean": infill, "lower_is_better": True}},
    }


def test_attention_counts_the_rows_of_the_run(tmp_path, tokenizer):
    """An imported model's longest row may be 64 times as long as the rows that it is trained on."""
    run = {"n_steps": 3, "start": {}, "seed": 0, "data": {"mixture": "causal", "batch_size": 2, "seq_len": 16}}
    model = Decoder(MODEL, key=jax.random.key(0))
    export(tmp_path / "m", model, tokenizer, run)
    found = describe_checkpoint(tmp_path / "m", model, Scorer(model, tokenizer))["compute"]
    assert found["flops_with_attention"] == MODEL.train_flops_per_token(16) * 3 * 2 * 16


def write(folder, results):
    for i, r in enumerate(results):
        (folder / str(i)).mkdir(parents=True)
        (folder / str(i) / "results.json").write_text(json.dumps(r))


RUN = [
    result([("causal", 100)], {"a": 0.1, "b": 0.2}, infill=2.0),
    result([("causal", 1000)], {"a": 0.3, "b": 0.4}, infill=1.5),
    result([("causal", 100), ("ul2r", 10)], {"a": 0.3, "b": 0.2}, infill=1.0),
    result([("causal", 100), ("causal", 10)], {"a": 0.1, "b": 0.3}, infill=1.9),
]


def test_families_follow_from_the_stages():
    found = build_points(RUN)
    assert [(p.family, p.start_flops, p.flops) for p in found] == [
        ("causal", 6000, 6000),
        ("causal", 60_000, 60_000),
        ("ul2r", 6000, 6600),
        ("control", 6000, 6600),
    ]
    turned = build_points(RUN, "infill_bits_per_byte")
    assert turned[2].scores == {"infill_bits_per_byte": -1.0}  # higher is better


def test_command_writes_table_figure_and_report(tmp_path, monkeypatch, capsys):
    write(tmp_path / "in", RUN)
    monkeypatch.setattr(sys, "argv", ["upalm", "scaling", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    main.main()
    said, contents = capsys.readouterr().out, json.loads((tmp_path / "out/scaling.json").read_text())
    assert contents.keys() == {"score", "minus infill_bits_per_byte"}
    by_family = {s["family"]: s for s in contents["score"]}
    assert by_family["ul2r"]["rate"] == pytest.approx(10**0.5 / 1.1)  # halfway up the run, for 1.1 times its start
    assert contents["minus infill_bits_per_byte"][1]["rate"] is None  # JSON has no infinity
    assert "over 9.09x [unknown]" in said and "+0.0500 (unknown)" in said
    assert json.loads((tmp_path / "out/differences.json").read_text())["score"][0]["se"] is None  # of a single pair
    assert (tmp_path / "out/scaling.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([*RUN, result([("causal", 1)], {"a": 1}, suite="other")], "several suites .other, s."),
        ([result([("ul2r", 1)], {"a": 1})], "trained on ul2r: expected a causal run"),
        ([RUN[0] | {"compute": {"n_params": 1, "stages": None}}], "its compute is not known"),
        (RUN[:1] + RUN[2:], "needs two checkpoints of the causal run, there are 1"),
        ([*RUN, result([("causal", 5)], {"z": 1})], "no task in common"),
        (
            [RUN[0], RUN[1] | {"tasks": {"a": {"score": 1, "n": 7}}}],
            r"task a has different questions: None questions .*, 7 questions",
        ),
        ([{"a": 1}], "is not a result of `upalm eval"),
        ([RUN[0] | {"compute": {}}], "damaged or of another version"),
        ([RUN[0] | {"tasks": {"a": {}}}], "damaged or of another version"),
        ([RUN[0] | {"tasks": []}], "damaged or of another version"),
        ([result([("causal", 100)], {"a": float("nan")})], "the score of a is nan, expected a finite number"),
        ([result([("causal", 0)], {"a": 0.5})], "its compute is 0.0 FLOPs"),
        ([result([], {"a": 0.5})], "was trained on : expected a causal run"),
        ([], "no results.json in"),
    ],
)
def test_results_that_do_not_fit_are_refused(results, message, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", results)
    monkeypatch.setattr(sys, "argv", ["upalm", "scaling", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=message):
        main.main()


def test_command_takes_results_or_the_paper(tmp_path, monkeypatch):
    for words in ((), (str(tmp_path), "--paper")):
        monkeypatch.setattr(sys, "argv", ["upalm", "scaling", *words])
        with pytest.raises(SystemExit, match="or --paper"):
            main.main()
