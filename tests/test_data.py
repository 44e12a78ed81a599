import numpy as np
import pytest

from upalm import ul2r
from upalm.data import DataConfig, Loader, Tokens
from upalm.tokenizer import Symbols

SENTINELS = tuple(range(999, 899, -1))
SYMBOLS = Symbols(SENTINELS, {"s2s": (11, 12), "nlu": (13,), "nlg": (14, 15, 16)})


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    return Tokens.of([rng.integers(0, 900, n).tolist() for n in (0, 1, 2, 50, 700, 3000, 9)])


def loader(tokens, seed=0, **changes):
    return Loader(tokens, DataConfig(**{"seq_len": 128, "batch_size": 4} | changes), SYMBOLS, seed=seed)


@pytest.mark.parametrize("mixture", ["ul2r", "causal"])
@pytest.mark.parametrize("joint_budget", [True, False])
def test_an_epoch_holds_every_token_once_and_rows_are_full(tokens, mixture, joint_budget):
    made = loader(tokens, mixture=mixture, joint_budget=joint_budget, seq_len=256)
    stream, rows = made._epoch(0)
    chunks = sorted((s.start, s.end) for row in rows for s in row)
    assert [c[0] for c in chunks] == [0, *(c[1] for c in chunks[:-1])]
    assert chunks[-1][1] == len(stream) == len(tokens.ids)
    sizes = [sum(made.segmenters[s.denoiser_id].segment_length(s.end - s.start) for s in row) for row in rows]
    assert max(sizes) <= 256
    assert sum(sizes) / (256 * (len(rows) - 1)) > 0.97  # all but the epoch's last row


def test_segments_invert_to_their_source(tokens):
    made = loader(tokens)
    stream, rows = made._epoch(0)
    for row, segments in enumerate(rows):
        for (_, start, end), (i, example) in zip(segments, made.segments(row), strict=True):
            segmenter = made.segmenters[i]
            inputs = example.inputs[len(segmenter.mode_ids) :]
            targets = example.targets[: len(example.targets) - len(segmenter.eos_ids)]
            plain = ul2r.Example(inputs, targets)
            is_span = isinstance(segmenter.denoiser, ul2r.SpanCorruption)
            source = ul2r.restore(plain, SENTINELS) if is_span else np.concatenate(plain)
            assert np.array_equal(source, stream[start:end])
            assert tuple(example.inputs[: len(segmenter.mode_ids)]) == SYMBOLS.modes[segmenter.denoiser.mode]


def test_a_batch_is_a_pure_function_of_seed_and_step(tokens):
    steps = range(60)  # several epochs
    first, replayed = loader(tokens), loader(tokens)
    forwards = [first.batch(k) for k in steps]
    for k in reversed(steps):
        assert all(np.array_equal(a, b) for a, b in zip(forwards[k], replayed.batch(k), strict=True))
    from_middle = list(loader(tokens).batches(37, 40))
    assert np.array_equal(from_middle[0].input_tokens, forwards[37].input_tokens)
    assert not np.array_equal(loader(tokens, seed=1).batch(0).input_tokens, forwards[0].input_tokens)


def test_noise_is_fresh_in_every_epoch(tokens):
    made = loader(tokens, mixture="ul2r")
    made._find(10_000)
    epochs = [made.batch(first // 4).input_tokens for first in made._first_rows[:3]]
    assert not np.array_equal(epochs[0], epochs[1])


def test_weights_are_shares_of_examples(tokens):
    made = loader(tokens)
    counts = np.zeros(3)
    for epoch in range(60):
        for row in made._plan_epoch(epoch)[1]:
            for segment in row:
                counts[segment.denoiser_id] += 1
    share = counts / counts.sum()
    error = 4 * np.sqrt(0.25 / counts.sum())
    assert np.allclose(share, [0.25, 0.25, 0.5], atol=error)


def test_18_bytes_a_token(tokens):
    batch = loader(tokens).batch(0)
    assert sum(x.nbytes for x in batch) <= 18 * batch.input_tokens.size


@pytest.mark.parametrize(
    ("change", "message"),
    [({"mixture": "ul3"}, "ul2r"), ({"seq_len": 4}, "at least 8"), ({"batch_size": 0}, "at least")],
)
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**change)
