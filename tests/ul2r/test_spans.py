import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.denoisers import SENTINELS, SPANS, SYMBOLS, VOCAB_SIZE

from upalm import ul2r
from upalm.ul2r import spans


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
@given(denoiser=SPANS, length=st.integers(0, 600), seed=st.integers(0, 2**32))
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
    draws = [tuple(spans._random_partition(6, 3, rng)) for _ in range(20_000)]
    counts = np.array([draws.count(x) for x in set(draws)])
    assert len(counts) == 10
    assert ((counts - 2000) ** 2 / 2000).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001


@settings(max_examples=300, deadline=None)
@given(denoiser=SPANS, ids=st.lists(st.integers(0, VOCAB_SIZE - 101), max_size=300), seed=st.integers(0, 2**32))
def test_splicing_targets_into_inputs_restores_the_text(denoiser, ids, seed):
    """Any ids come back: 0, EOS and padding are nothing special."""
    tokens = np.array(ids, np.int32)
    example = denoiser(tokens, np.random.default_rng(seed), SYMBOLS)
    assert np.array_equal(ul2r.restore(example, SENTINELS), tokens)
    slots = [i for i in example.inputs if i in SENTINELS]
    assert slots == [i for i in example.targets if i in SENTINELS] == list(SENTINELS[: len(slots)])


def test_rolled_masks_favour_no_place_but_spare_the_ends():
    """T5's first token is never noise, its last always.

    Rolled, all are, equally often but for the ends, where no span may be split: there less, and on both sides alike.
    """
    rng, n = np.random.default_rng(0), 40_000
    share = sum(ul2r.span_noise_mask(40, 3.0, 0.15, rng, roll=True).astype(int) for _ in range(n)) / n
    assert np.ptp(share[8:-8]) < 10 * np.sqrt(0.15 * 0.85 / n), share
    assert share.min() > 0.04
    assert np.allclose(share, share[::-1], atol=6 * np.sqrt(0.15 * 0.85 / n))


def test_restoring_refuses_other_sentinels():
    inputs, targets = np.array([5, SENTINELS[0], 6]), np.array([SENTINELS[1], 7])
    for example in (
        ul2r.Example(inputs, targets),
        ul2r.Example(inputs, targets[1:]),
        ul2r.Example(inputs[:1], targets),
    ):
        with pytest.raises(ValueError, match="different sentinels"):
            ul2r.restore(example, SENTINELS)
