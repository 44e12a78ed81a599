import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from support.denoisers import DENOISERS, SENTINELS, SYMBOLS

import upalm
from upalm import ul2r
from upalm.checkpoints.folder import open_checkpoint


@settings(max_examples=300, deadline=None)
@given(denoiser=DENOISERS, length=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_lengths_are_known_before_sampling(denoiser, length, seed):
    example = denoiser(np.arange(length, dtype=np.int32) % 12, np.random.default_rng(seed), SYMBOLS)
    most_inputs, most_targets = denoiser.lengths(length)
    assert len(example.inputs) <= most_inputs
    assert len(example.targets) <= most_targets
    assert len(example.inputs) + len(example.targets) == length + 2 * denoiser.n_sentinels(length)


def test_prefix_split_is_uniform():
    rng = np.random.default_rng(0)
    splits = [len(ul2r.S(np.arange(11), rng, SYMBOLS).inputs) for _ in range(20_000)]
    counts = np.bincount(splits, minlength=11)
    assert counts[0] == 0
    assert ((counts[1:] - 2000) ** 2 / 2000).sum() < 27.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean_span": 0.5}, "mean_span"),
        ({"corruption_rate": 1.0}, "corruption_rate"),
        ({"mode": "abc"}, "mode"),
        ({"shortest": 0.0}, r"shortest is 0.0, expected in \(0, 1\]"),
        ({"shortest": float("nan")}, "shortest"),
        ({"max_spans": 101}, "r: max_spans is 101, expected a whole number, 1 to 100"),
    ],
)
def test_bad_denoisers(change, message):
    with pytest.raises(ValueError, match=message):
        ul2r.SpanCorruption(**{"name": "r", "mean_span": 3.0, "corruption_rate": 0.15} | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"mean_span": 0.5}, "mean_span"), ({"n_spans": 0}, "n_spans"), ({"n_spans": 101}, "1 to 100")],
)
def test_bad_gaps(change, message):
    with pytest.raises(ValueError, match=message):
        ul2r.Gaps(**{"name": "gaps", "mean_span": 3.0} | change)


@pytest.mark.parametrize(
    ("denoiser", "change"),
    [
        *((ul2r.S, {"inputs_eos": wrong}) for wrong in (1, "no")),
        *((ul2r.R, {"max_spans": wrong}) for wrong in (True, 3.0)),
        *((ul2r.Gaps(name="gaps", mean_span=3.0), {"n_spans": wrong}) for wrong in (True, 3.0)),
    ],
)
def test_fields_of_another_type_are_refused(denoiser, change):
    """As a mixture's text may have them, where nothing else checks the types."""
    other = object.__new__(type(denoiser))
    other.__dict__.update(vars(denoiser) | change)
    [(name, wrong)] = change.items()
    with pytest.raises(ValueError, match=f"{denoiser.name}: {name} is {wrong!r}, expected (True or False|a whole)"):
        other.__post_init__()


def test_lengths_of_gaps_are_geometric_and_their_places_uniform():
    """So that neither the place of a gap nor its length so far says where it ends."""
    denoiser, rng, n = ul2r.Gaps(name="line", mean_span=4.0), np.random.default_rng(0), 400
    examples = [denoiser(np.arange(n), rng, SYMBOLS) for _ in range(20_000)]
    spans = np.array([len(e.targets) - 1 for e in examples])
    law = scipy.stats.geom(1 / 4).pmf(np.arange(1, 101))
    assert_follows(np.bincount(spans, minlength=101)[1:101], law)
    starts = np.array([int(np.isin(e.inputs, SYMBOLS.sentinels).argmax()) for e in examples])
    one = starts[spans == 1]
    assert_follows(np.bincount(one // 4, minlength=100), np.full(100, 0.01))
    assert len(set(starts[spans == 5].tolist())) > 300


def test_several_gaps_never_touch():
    denoiser, rng = ul2r.Gaps(name="words", mean_span=4.0, n_spans=3), np.random.default_rng(0)
    for length in range(2, 40):
        inputs, targets = denoiser(np.arange(length), rng, SYMBOLS)
        slots = np.flatnonzero(np.isin(inputs, SYMBOLS.sentinels))
        assert len(slots) == denoiser.n_sentinels(length) == min(3, length // 2)
        assert np.all(np.diff(slots) > 1), inputs
        assert np.array_equal(ul2r.restore(ul2r.Example(inputs, targets), SYMBOLS.sentinels), np.arange(length))


def test_bad_lines():
    with pytest.raises(ValueError, match="expected 1, since one line"):
        ul2r.Lines(name="line", mean_span=3.0, n_spans=2)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ("import| x|\n|def| f|():\n|    |return| x|\n\n|y|\n|z", ["def f():\n", "    return x", "y"]),
        ("x|\n   | if| y|:|\n       | return|\n\n   | z|\n", [" if y:", " return", " z"]),
        ("\n|\n|x|\r\n|y", ["x"]),
        ("a|\n#| b|\n|c| \n|d", ["c"]),
        ("\n|a|)\n\n@|b|\n|c", []),
        ("no| break", []),
        ("\n|no| end", []),
        ("\n|no| text| after|:\n", []),
        ("x|:\n|a|.\n#\n\n|b| c|:\n\n|d", ["b c:\n\n"]),
        ("x|\n|last|</s>|import| os|\n|a|</s>|b|\n", ["last", "import os", "a", "b"]),
    ],
)
def test_whole_lines_are_found_wherever_the_vocabulary_has_line_breaks(pieces, expected):
    texts = [piece.encode() for piece in pieces.split("|")]
    symbols = SYMBOLS._replace(**ul2r.find_line_breaks(texts), eos_id=-1)
    lines = ul2r.find_lines(np.where(np.array(texts) == b"</s>", -1, np.arange(len(texts))), symbols)
    assert [b"".join(texts[a:b]).decode() for a, b in lines] == expected


def test_every_line_of_a_chunk_is_masked_as_often():
    texts = [b"x", b":\n"]
    symbols = SYMBOLS._replace(**ul2r.find_line_breaks(texts), eos_id=9)
    tokens = np.array([0, 1, *[0, 0, 0, 1] * 5, 0, 1, *[0] * 30, 1, 0])
    denoiser, rng = ul2r.Lines(name="line", mean_span=2.0), np.random.default_rng(0)
    examples = [denoiser(tokens, rng, symbols) for _ in range(2000)]
    assert all(e.targets[1:].tolist() == [0, 0, 0, 1] for e in examples)  # one is too short, one too long
    starts = [int(np.isin(e.inputs, SENTINELS).argmax()) for e in examples]
    assert_follows(np.bincount(starts, minlength=19), np.isin(np.arange(19), range(2, 19, 4)) / 5)


def test_without_line_breaks_a_missing_line_is_a_gap():
    tokens = np.arange(200, 260)
    line, gap = ul2r.Lines(name="line", mean_span=4.0), ul2r.Gaps(name="gap", mean_span=4.0)
    for seed in range(9):
        examples = [d(tokens, np.random.default_rng(seed), SYMBOLS) for d in (line, gap)]
        assert np.array_equal(examples[0].inputs, examples[1].inputs)


def test_missing_lines_of_a_real_tokenizer_are_lines_of_the_text():
    """In code that the shipped vocabulary cuts at will, at the end of some lines and before that of others."""
    _, tokenizer, _ = open_checkpoint(upalm.PALM_TINY)
    text = Path(ul2r.denoisers.__file__).read_text("utf-8")
    tokens = np.array(tokenizer.encode(text))
    denoiser, rng = ul2r.Lines(name="line", mean_span=4.0), np.random.default_rng(0)
    found = set()
    for start in range(0, len(tokens) - 256, 64):
        _, targets = denoiser(tokens[start : start + 256], rng, tokenizer.symbols)
        found.add(tokenizer.decode(targets[1:].tolist()).strip("\n"))
    assert len(found) > 20 and found <= set(text.split("\n"))


def parts_law(total, n_parts):
    """P(a part has j tokens), j = 1, 2, ..., when all compositions of `total` into `n_parts` are equally likely."""
    if n_parts == 1:
        return np.eye(total)[-1]
    ways = [math.comb(total - j - 1, n_parts - 2) if j < total else 0 for j in range(1, total + 1)]
    return np.array([w / math.comb(total - 1, n_parts - 1) for w in ways])


def assert_follows(counts, law):
    """Chi-squared test at p = 0.0001, with cells of fewer than ten expected joined."""
    order = np.argsort(-law)
    n_cells = max(int((law * counts.sum() >= 10).sum()), 1)
    observed, expected = counts[order], law[order] * counts.sum()
    cells = (
        np.array([*observed[:n_cells], observed[n_cells:].sum()]),
        np.array([*expected[:n_cells], expected[n_cells:].sum()]),
    )
    statistic = ((cells[0] - cells[1]) ** 2 / np.maximum(cells[1], 1e-9))[cells[1] > 1e-6].sum()
    assert statistic < scipy.stats.chi2.isf(1e-4, max(n_cells - 1, 1)), (statistic, n_cells)


@pytest.mark.slow
@pytest.mark.parametrize(
    "denoiser",
    {  # each law once: names and weights change none
        (type(d), getattr(d, "mean_span", None), d.corruption_rate): d
        for m in (ul2r.UL2R, ul2r.UL2R_SPLIT_X, ul2r.UL2)
        for d in m
    }.values(),
    ids=repr,
)
def test_100_000_samples_follow_t5s_laws(denoiser):
    length, n, rng = 150, 100_000, np.random.default_rng(0)
    if isinstance(denoiser, ul2r.PrefixLM):
        first = max(1, round((1 - 2 * denoiser.corruption_rate) * (length - 1)))
        pivots = [len(denoiser(np.arange(length), rng, SYMBOLS).inputs) for _ in range(n)]
        law = np.array([first <= p < length for p in range(length)]) / (length - first)
        assert_follows(np.bincount(pivots, minlength=length), law)
    elif isinstance(denoiser, ul2r.SpanCorruption):
        n_noise = min(max(int(np.round(np.float32(length) * np.float32(denoiser.corruption_rate))), 1), length - 1)
        n_spans = max(int(np.round(np.float32(n_noise) / np.float32(denoiser.mean_span))), 1)
        n_spans = min(n_spans, denoiser.max_spans or n_spans)
        sizes = (length, denoiser.mean_span, denoiser.corruption_rate, rng)
        masks = np.stack([ul2r.span_noise_mask(*sizes, max_spans=denoiser.max_spans) for _ in range(n)])
        ends = masks & ~np.pad(masks, ((0, 0), (0, 1)))[:, 1:]
        assert (masks.sum(1) == n_noise).all() and (ends.sum(1) == n_spans).all()
        first_kept = masks.argmax(1)
        first_span = ends.argmax(1) + 1 - first_kept
        assert_follows(np.bincount(first_span, minlength=n_noise + 1)[1:], parts_law(n_noise, n_spans))
        n_kept = length - n_noise
        assert_follows(np.bincount(first_kept, minlength=n_kept + 1)[1:], parts_law(n_kept, n_spans))
