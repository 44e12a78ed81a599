import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upalm import ul2r
from upalm.batch import Batch
from upalm.tokenizer import Symbols

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
    draws = [tuple(ul2r._random_partition(6, 3, rng)) for _ in range(20_000)]
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
    assert ul2r.Segmenter(capped, ul2r.Budget.split(2048), SYMBOLS).longest_chunk(2048) > 1000


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
    row, at = Batch(*(x[0] for x in batch)), 0
    for i, (inputs, targets) in enumerate(examples):
        at = ul2r.write_segment(row, at, ul2r.Example(np.array(inputs), np.array(targets)), i + 1, 0, 0)
    assert row.target_tokens.tolist() == [7, 8, 5, 1, 3, 9, 1, 8, 4, 9, 3, 1, 4, 1, 0]
    assert row.input_tokens.tolist() == [0, 7, 8, 5, 1, 3, 9, 0, 8, 4, 9, 3, 1, 4, 0]
    assert row.loss_weights.tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0]
    assert row.segment_ids.tolist() == [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0]
    assert row.prefix_mask.astype(int).tolist() == [1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0]
