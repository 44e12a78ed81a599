import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from upalm import ul2r
from upalm.ul2r import spans as spans_module
from upalm.ul2r.rows import Batch
from upalm.ul2r.symbols import Symbols

V = 1000
SENTINELS = tuple(range(V - 1, V - 101, -1))
SYMBOLS = Symbols(SENTINELS, {"s2s": (11, 12), "nlu": (13,), "nlg": (14, 15, 16)})

spans = st.builds(
    ul2r.SpanCorruption,
    name=st.just("span"),
    mode=st.sampled_from(["nlu", "nlg", "none"]),
    mean_span=st.floats(1, 70),
    corruption_rate=st.floats(0.01, 0.99),
    max_spans=st.integers(1, 100),
    roll=st.booleans(),
)
denoisers = st.one_of(
    spans,
    st.builds(ul2r.PrefixLM, name=st.just("s"), mode=st.just("s2s"), corruption_rate=st.floats(0.01, 0.5)),
    st.just(ul2r.Causal(name="c")),
)


# T5's helper at 512 and 1024 inputs (EOS in both halves): raw chunk, targets, spans
@pytest.mark.parametrize(
    ("mean_span", "rate", "raw", "inputs", "targets", "n_spans"),
    [
        (3, 0.15, 568, 512, 114, 28),
        (8, 0.15, 588, 512, 100, 11),
        (3, 0.5, 766, 512, 512, 128),
        (8, 0.5, 908, 512, 512, 57),
        (64, 0.15, 600, 512, 92, 1),
        (64, 0.5, 1006, 512, 512, 8),
        (32, 0.15, 598, 512, 94, 3),
        (3, 0.15, 1137, 1024, 229, 57),
        (8, 0.15, 1178, 1024, 200, 22),
        (64, 0.15, 1200, 1024, 184, 3),
        (32, 0.5, 1984, 1024, 1024, 31),
    ],
)
def test_span_counts_are_t5s(mean_span, rate, raw, inputs, targets, n_spans):
    n_noise, k = ul2r.span_counts(raw, float(mean_span), rate)
    assert (raw - n_noise + k + 1, n_noise + k + 1, k) == (inputs, targets, n_spans)


def test_rounding_is_float32_half_to_even():
    """The 18 lengths where T5's float32 and Python's float64 disagree."""
    differ = [n for n in range(2, 2049) if ul2r.span_counts(n, 3.0, 0.15)[0] != min(max(round(n * 0.15), 1), n - 1)]
    assert len(differ) == 18
    assert differ[:6] == [190, 350, 390, 670, 710, 750]


@settings(max_examples=300, deadline=None)
@given(denoiser=spans, length=st.integers(0, 600), seed=st.integers(0, 2**32))
def test_noise_mask_counts(denoiser, length, seed):
    rng = np.random.default_rng(seed)
    options = {"roll": denoiser.roll, "max_spans": denoiser.max_spans}
    mask = ul2r.span_noise_mask(length, denoiser.mean_span, denoiser.corruption_rate, rng, **options)
    assert mask.shape == (length,)
    assert mask.sum() == ul2r.span_counts(length, denoiser.mean_span, denoiser.corruption_rate)[0]
    starts = mask & ~np.concatenate([[False], mask[:-1]])
    assert starts.sum() == denoiser.n_sentinels(length)
    if length > 1 and not denoiser.roll:
        assert not mask[0] and mask[-1]


def test_partition_is_uniform():
    """All 10 ways to write 6 as 3 positive parts come equally often."""
    rng = np.random.default_rng(0)
    draws = [tuple(spans_module._random_partition(6, 3, rng)) for _ in range(20_000)]
    counts = np.array([draws.count(x) for x in set(draws)])
    assert len(counts) == 10
    assert ((counts - 2000) ** 2 / 2000).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001


@settings(max_examples=300, deadline=None)
@given(denoiser=spans, ids=st.lists(st.integers(0, V - 101), max_size=300), seed=st.integers(0, 2**32))
def test_splicing_targets_into_inputs_restores_the_text(denoiser, ids, seed):
    """With any ids: 0, EOS and padding are nothing special."""
    tokens = np.array(ids, np.int32)
    example = denoiser(tokens, np.random.default_rng(seed), SYMBOLS)
    assert np.array_equal(ul2r.restore(example, SENTINELS), tokens)
    slots = [i for i in example.inputs if i in SENTINELS]
    assert slots == [i for i in example.targets if i in SENTINELS] == list(SENTINELS[: len(slots)])


@settings(max_examples=300, deadline=None)
@given(denoiser=denoisers, length=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_lengths_are_known_before_sampling(denoiser, length, seed):
    example = denoiser(np.arange(length, dtype=np.int32), np.random.default_rng(seed), SYMBOLS)
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


def test_the_mixture_is_the_papers():
    """U-PaLM section 2.3: 25% R (mean 3, 15%), 25% X (mean 32, 50%), 50% S."""
    r, x, s = ul2r.UL2R
    assert (r.mode, r.mean_span, r.corruption_rate, r.weight) == ("nlu", 3, 0.15, 0.25)
    assert (x.mode, x.mean_span, x.corruption_rate, x.weight) == ("nlg", 32, 0.5, 0.25)
    assert (s.mode, s.corruption_rate, s.weight) == ("s2s", 0.5, 0.5)


def test_too_few_sentinels_is_an_error_that_names_the_denoiser():
    dense = ul2r.SpanCorruption(name="dense", mean_span=3.0, corruption_rate=0.5)
    with pytest.raises(ValueError, match="'dense' needs 256 sentinels"):
        ul2r.Segmenter(dense, ul2r.Budget.split(2048), SYMBOLS)
    capped = ul2r.SpanCorruption(name="dense", mean_span=3.0, corruption_rate=0.5, max_spans=100)
    assert ul2r.Segmenter(capped, ul2r.Budget.split(2048), SYMBOLS).longest_chunks[2048] > 1000


def test_rows_too_short_for_the_mixture():
    with pytest.raises(ValueError, match="'x' does not fit"):
        ul2r.Segmenter(ul2r.X, ul2r.Budget.split(8), SYMBOLS)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"mean_span": 0.5}, "mean_span"), ({"corruption_rate": 1.0}, "corruption_rate"), ({"mode": "abc"}, "mode")],
)
def test_bad_denoisers(change, message):
    with pytest.raises(ValueError, match=message):
        ul2r.SpanCorruption(**{"name": "r", "mean_span": 3.0, "corruption_rate": 0.15} | change)


def test_rows_are_seqios():
    """The oracle of seqio's PrefixLM converter, integer for integer (fact sheet 1.6)."""
    examples = [([7, 8, 5, 1], [3, 9, 1]), ([8, 4, 9, 3, 1], [4, 1])]
    batch = Batch.empty(1, 15)
    row, at = batch.row(0), 0
    for i, (inputs, targets) in enumerate(examples):
        at = ul2r.write_segment(row, at, ul2r.Example(np.array(inputs), np.array(targets)), i + 1, 0, 0)
    assert row.target_tokens.tolist() == [7, 8, 5, 1, 3, 9, 1, 8, 4, 9, 3, 1, 4, 1, 0]
    assert row.input_tokens.tolist() == [0, 7, 8, 5, 1, 3, 9, 0, 8, 4, 9, 3, 1, 4, 0]
    assert row.loss_weights.tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0]
    assert row.segment_ids.tolist() == [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0]
    assert row.prefix_mask.astype(int).tolist() == [1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0]


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
    found, expected = counts[order], law[order] * counts.sum()
    cells = (
        np.array([*found[:n_cells], found[n_cells:].sum()]),
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


def test_rolled_masks_favour_no_place_but_spare_the_ends():
    """T5's first token is never noise, its last always. Rolled, all are, equally often but for the ends, where
    no span may be split: there less, and on both sides alike."""
    rng, n = np.random.default_rng(0), 40_000
    share = sum(ul2r.span_noise_mask(40, 3.0, 0.15, rng, roll=True).astype(int) for _ in range(n)) / n
    assert np.ptp(share[8:-8]) < 10 * np.sqrt(0.15 * 0.85 / n), share
    assert share.min() > 0.04
    assert np.allclose(share, share[::-1], atol=6 * np.sqrt(0.15 * 0.85 / n))


# UL2, arXiv:2205.05131, Table 1 (as public configurations of UL2 have it): (mean span, rate)
UL2_TABLE = [(3, 0.15), (8, 0.15), (3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5)]


def test_presets_are_the_papers_tables():
    spans = [d for d in ul2r.UL2 if isinstance(d, ul2r.SpanCorruption)]
    assert [(d.mean_span, d.corruption_rate) for d in spans] == UL2_TABLE
    assert [d.mode for d in ul2r.UL2] == ["nlu", "nlu", "nlg", "nlg", "nlg", "nlg", "s2s"]
    assert ul2r.UL2[-1] == ul2r.PrefixLM(name="s", mode="s2s", corruption_rate=0.25)
    assert {d.weight for d in ul2r.UL2} == {1.0}
    # UL2's rule for "extreme": spans of 12 tokens or more, or a rate of 30% or more
    for d in (*spans, *(d for d in ul2r.UL2R_SPLIT_X if isinstance(d, ul2r.SpanCorruption))):
        assert (d.mode == "nlg") == (d.mean_span >= 12 or d.corruption_rate >= 0.3), d
    split = {d.name: (getattr(d, "mean_span", None), d.corruption_rate, d.weight) for d in ul2r.UL2R_SPLIT_X}
    assert split == {"r": (3, 0.15, 0.25), "x1": (32, 0.15, 0.125), "x2": (3, 0.5, 0.125), "s": (None, 0.5, 0.5)}
    assert ul2r.PREFIX_LM == (ul2r.PrefixLM(name="s", mode="s2s"),)


@pytest.mark.parametrize("mixture", sorted(ul2r.MIXTURES))
def test_every_preset_fits_the_papers_rows(mixture):
    for denoiser in ul2r.MIXTURES[mixture]:
        ul2r.Segmenter(denoiser, ul2r.Budget.split(2048), SYMBOLS)
