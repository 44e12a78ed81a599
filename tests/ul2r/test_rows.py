import numpy as np
import pytest
from support.denoisers import SYMBOLS

from upalm import ul2r
from upalm.ul2r.rows import Batch


def test_too_few_sentinels_is_an_error_that_names_the_denoiser():
    dense = ul2r.SpanCorruption(name="dense", mean_span=3.0, corruption_rate=0.5)
    with pytest.raises(ValueError, match="'dense' needs 256 sentinels"):
        ul2r.Segmenter(dense, ul2r.Budget.split(2048), SYMBOLS)
    capped = ul2r.SpanCorruption(name="dense", mean_span=3.0, corruption_rate=0.5, max_spans=100)
    assert ul2r.Segmenter(capped, ul2r.Budget.split(2048), SYMBOLS).longest_chunks[2048] > 1000


def test_rows_too_short_for_the_mixture():
    with pytest.raises(ValueError, match="'x' does not fit"):
        ul2r.Segmenter(ul2r.X, ul2r.Budget.split(8), SYMBOLS)


def test_rows_are_seqios():
    """The oracle of seqio's PrefixLM converter, integer for integer."""
    examples = [([7, 8, 5, 1], [3, 9, 1]), ([8, 4, 9, 3, 1], [4, 1])]
    batch = Batch.empty(1, 15)
    row, end = batch.row(0), 0
    for i, (inputs, targets) in enumerate(examples):
        end = ul2r.write_segment(row, end, ul2r.Example(np.array(inputs), np.array(targets)), i + 1, 0, 0)
    assert row.target_tokens.tolist() == [7, 8, 5, 1, 3, 9, 1, 8, 4, 9, 3, 1, 4, 1, 0]
    assert row.input_tokens.tolist() == [0, 7, 8, 5, 1, 3, 9, 0, 8, 4, 9, 3, 1, 4, 0]
    assert row.loss_weights.tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0]
    assert row.segment_ids.tolist() == [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0]
    assert row.prefix_mask.astype(int).tolist() == [1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("seq_len", [1, 7, 32_767, 32_768, 70_000])
def test_positions_and_segment_ids_never_wrap(seq_len):
    """Rows may be longer than int16 counts, and may have a segment at every position."""
    one, many = Batch.empty(2, seq_len).row(0), Batch.empty(2, seq_len).row(1)
    nothing = np.empty(0, np.int32)
    ul2r.write_segment(one, 0, ul2r.Example(nothing, np.arange(seq_len, dtype=np.int32)), 1, 0, 0)
    assert np.array_equal(one.positions, np.arange(seq_len))
    for i in range(seq_len - 3, seq_len) if seq_len > 3 else range(seq_len):
        ul2r.write_segment(many, i, ul2r.Example(nothing, np.array([5], np.int32)), i + 1, 0, 0)
    assert many.segment_ids[-1] == seq_len and many.segment_ids.min() >= 0


@pytest.mark.parametrize(("seq_len", "per_token"), [(5, 18), (32_767, 18), (32_768, 22)])
def test_packed_rows_come_back(seq_len, per_token):
    rng, batch = np.random.default_rng(0), Batch.empty(2, seq_len)
    for x in batch:
        x[:] = rng.integers(0, 2, x.shape)
    assert batch.pack().shape == (2, per_token * seq_len)
    for a, b in zip(Batch.unpack(batch.pack()), batch, strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)


def test_a_denoiser_that_breaks_its_promise_is_named():
    """A denoiser that breaks its promise would overflow its rows, or have floats cut to ids."""

    class Doubles(ul2r.PrefixLM):
        def __call__(self, tokens, rng, symbols):
            return ul2r.Example(tokens, tokens)

    class Floats(ul2r.PrefixLM):
        def __call__(self, tokens, rng, symbols):
            return ul2r.Example(tokens[:1] / 2, tokens[1:])

    tokens = np.arange(9, dtype=np.int32)
    for denoiser, message in ((Doubles(name="d"), "'d' makes 18 tokens"), (Floats(name="f"), "'f' makes 9 .*float64")):
        segmenter = ul2r.Segmenter(denoiser, ul2r.Budget.split(64), SYMBOLS)
        with pytest.raises(ValueError, match=message):
            segmenter(tokens, np.random.default_rng(0))
