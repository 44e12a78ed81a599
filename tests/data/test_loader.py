import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upalm import ul2r
from upalm.data.config import DataConfig, Weighted
from upalm.data.loader import Loader, statistics
from upalm.data.tokens import Tokens
from upalm.ul2r.symbols import Symbols

SENTINELS = tuple(range(999, 899, -1))
SYMBOLS = Symbols(SENTINELS, {"s2s": (11, 12), "nlu": (13,), "nlg": (14, 15, 16)})


def documents(lengths, seed=0):
    """Random ids over all but the sentinels: padding, EOS and mode tokens occur in the text."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 900, n).tolist() for n in lengths]


@pytest.fixture(scope="module")
def tokens():
    return Tokens.of(documents((0, 1, 2, 50, 700, 3000, 9)))


def loader(tokens, seed=0, rows=None, skips=(), **changes):
    config = DataConfig(**{"seq_len": 128, "batch_size": 4} | changes)
    return Loader(tokens, config, SYMBOLS, seed=seed, rows=rows, skips=skips)


def rows_in(made, windows):
    """Rows of the first windows."""
    return sum(len(made.plan(0, w)[0].rows) for w in range(windows))


def source_of(made, segment, example):
    """What a segment was made of, by splicing its targets into its inputs."""
    segmenter = made.segmenters[segment.denoiser_id]
    inputs = example.inputs[len(segmenter.mode_ids) : len(example.inputs) - len(segmenter.inputs_eos_ids)]
    targets = example.targets[: len(example.targets) - len(segmenter.eos_ids)]
    assert tuple(example.inputs[: len(segmenter.mode_ids)]) == SYMBOLS.modes.get(segmenter.denoiser.mode, ())
    if isinstance(segmenter.denoiser, ul2r.SpanCorruption):
        return ul2r.restore(ul2r.Example(inputs, targets), SENTINELS)
    return np.concatenate([inputs, targets])


mixtures = st.lists(
    st.builds(
        ul2r.SpanCorruption,
        name=st.just("span"),
        mode=st.sampled_from(["nlu", "nlg", "none"]),
        weight=st.floats(0.1, 1),
        inputs_eos=st.booleans(),
        mean_span=st.floats(1, 70),
        corruption_rate=st.floats(0.05, 0.6),
        max_spans=st.integers(1, 100),
        roll=st.booleans(),
    )
    | st.builds(ul2r.PrefixLM, name=st.just("s"), mode=st.just("s2s"), corruption_rate=st.floats(0.05, 0.5))
    | st.just(ul2r.Causal(name="c")),
    min_size=1,
    max_size=4,
    unique_by=lambda d: d.name,
).map(lambda found: ", ".join(map(repr, found)))


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 400), min_size=1, max_size=12).filter(lambda x: sum(x) + len(x) >= 2),
    mixture=st.sampled_from(sorted(ul2r.MIXTURES)) | mixtures,
    seq_len=st.sampled_from([128, 200, 256]),
    layout=st.sampled_from(["concatenated", "documents"]),
    joint_budget=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_an_epoch_holds_every_token_once_and_every_segment_inverts(
    lengths, mixture, seq_len, layout, joint_budget, seed
):
    tokens = Tokens.of(documents(lengths, seed))
    options = {"mixture": mixture, "seq_len": seq_len, "layout": layout, "joint_budget": joint_budget}
    made = loader(tokens, seed, **options)
    shuffled, plan = made.window(0, 0)
    edges = set(shuffled.offsets.tolist())
    found = {}
    for row in range(len(plan.rows)):
        size = 0
        for segment, example in made.segments(row):
            found[segment.start] = source_of(made, segment, example)
            size += len(example.inputs) + len(example.targets)
            inside = edges & set(range(segment.start + 1, segment.end))
            assert layout == "concatenated" or not inside, "a segment reaches over a document's end"
        assert size <= seq_len
    whole = np.concatenate([found[start] for start in sorted(found)])
    assert np.array_equal(whole, shuffled.ids)
    assert sorted(whole.tolist()) == sorted(tokens.ids.tolist())


@pytest.mark.parametrize("layout", ["concatenated", "documents"])
@pytest.mark.parametrize("mixture", sorted(ul2r.MIXTURES))
def test_rows_are_full(mixture, layout):
    lengths = np.random.default_rng(0).lognormal(5.5, 1.0, 800).astype(int)
    made = loader(Tokens.of(documents(lengths)), mixture=mixture, layout=layout, seq_len=1024)
    n = rows_in(made, 1)
    found = statistics(made, n)
    assert sum(d.source_tokens for d in found.denoisers) == made.corpora[0].n_tokens
    # the last row of the window is as full as the text allows
    assert found.padding - 1024 <= 0.005 * found.positions


def test_rows_fit_their_budgets(tokens):
    made = loader(tokens, mixture="ul2r", seq_len=128)
    for row in range(rows_in(made, 2)):
        for segment, example in made.segments(row):
            assert len(example.inputs) <= 64 and len(example.targets) <= 64, segment


def digest(batches):
    return hashlib.sha256(b"".join(x.tobytes() for batch in batches for x in batch)).hexdigest()


def test_a_batch_is_a_pure_function_of_seed_and_step(tokens):
    first = loader(tokens, batch_size=8)
    n = 2 * rows_in(first, 2) // 8  # four epochs
    forwards = [first.batch(k) for k in range(n)]
    backwards = loader(tokens, batch_size=8)
    for k in reversed(range(n)):
        assert digest([backwards.batch(k)]) == digest([forwards[k]])
    assert digest(loader(tokens, batch_size=8).batches(n - 3, n)) == digest(forwards[-3:])
    assert digest([loader(tokens, seed=1, batch_size=8).batch(0)]) != digest(forwards[:1])


@pytest.mark.parametrize("count", [1, 2, 8])
def test_processes_share_a_batch(tokens, count):
    whole = [loader(tokens, batch_size=8).batch(k) for k in range(20)]
    parts = [loader(tokens, batch_size=8, rows={8: np.array_split(np.arange(8), count)[i]}) for i in range(count)]
    for k, batch in enumerate(whole):
        shared = [np.concatenate(x) for x in zip(*(part.batch(k) for part in parts), strict=True)]
        assert digest([shared]) == digest([batch])


def test_a_ramp_takes_the_same_rows_in_larger_batches(tokens):
    """PaLM's: rows go on where they were, and no row is left out or taken twice."""
    ramp = loader(tokens, batch_size=2, batch_ramp=((3, 4), (5, 8)))
    assert [len(ramp.batch(k).input_tokens) for k in range(7)] == [2, 2, 2, 4, 4, 8, 8]
    whole = loader(tokens, batch_size=30).batch(0)
    joined = [np.concatenate(x) for x in zip(*(ramp.batch(k) for k in range(7)), strict=True)]
    assert digest([joined]) == digest([whole])
    config = DataConfig(batch_size=512, batch_ramp=((50_000, 1024), (115_000, 2048)))
    tokens_at = [config.rows_before(step) * 2048 / 1e9 for step in (50_000, 115_000, 255_000)]
    assert [round(t, 1) for t in tokens_at] == [52.4, 188.7, 775.9]  # PaLM 540B, fact sheet 3.3


def test_skipped_batches_are_left_out_and_the_rest_follow(tokens):
    plain, skipping = loader(tokens, batch_size=4), loader(tokens, batch_size=4, skips=[(2, 3), (4, 1)])
    taken = [0, 1, 5, 6, 8, 9]
    assert digest(skipping.batch(k) for k in range(6)) == digest(plain.batch(k) for k in taken)


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [1, 2])
def test_workers_change_nothing(tokens, n_workers):
    expected = digest(loader(tokens).batch(k) for k in range(5, 30))
    assert digest(loader(tokens, n_workers=n_workers).batches(5, 30)) == expected


def test_grains_state_is_the_step(tokens):
    rest = iter(loader(tokens).dataset(0, 20))
    for _ in range(7):
        next(rest)
    resumed = iter(loader(tokens).dataset(0, 20))
    resumed.set_state(rest.get_state())
    assert digest(resumed) == digest(loader(tokens).batch(k) for k in range(7, 20))


def test_noise_and_order_are_fresh_in_every_epoch(tokens):
    made = loader(tokens)
    firsts = [next(iter(made.segments(rows_in(made, k)))) for k in range(4)]
    assert len({example.targets.tobytes() for _, example in firsts}) == 4


def test_weights_are_shares_of_examples():
    """Also where rooms are short: a denoiser that does not fit a row begins the next, it is not drawn again."""
    made = loader(Tokens.of(documents([400] * 2000)), mixture="ul2r_split_x", seq_len=200)
    found = statistics(made, rows_in(made, 1))
    n = sum(d.examples for d in found.denoisers)
    for counts, denoiser in zip(found.denoisers, ul2r.UL2R_SPLIT_X, strict=True):
        p = denoiser.weight
        assert counts.examples / n == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / n))


def test_corpora_are_mixed_by_weight():
    """Corpus a has even ids, b odd ones."""
    a, b = (
        Tokens.joined([np.random.default_rng(i).integers(0, 400, 5000) * 2 + i for _ in range(20)]) for i in range(2)
    )
    source = [Weighted(a, 0.75), Weighted(b, 0.25)]
    made = Loader(source, DataConfig(mixture="causal", seq_len=64, batch_size=8), SYMBOLS, seed=0)
    is_b = np.array([made.batch(k).target_tokens[:, 0] % 2 for k in range(50)]).ravel()
    assert is_b.mean() == 0.25
    again = Loader(source, made.config, SYMBOLS, seed=0)
    assert digest([again.batch(40)]) == digest([made.batch(40)])


def test_supervised_pairs_become_rows():
    pairs = [(list(range(20, 20 + i)), list(range(500, 503 + i % 7))) for i in range(1, 60)]
    made = loader(Tokens.of_pairs(pairs), seq_len=128)
    n = rows_in(made, 1)
    found = [(e.inputs.tolist(), e.targets.tolist()) for row in range(n) for _, e in made.segments(row)]
    assert sorted(found) == sorted((inputs, [*targets, 1]) for inputs, targets in pairs)
    batch = made.batch(0)
    assert set(batch.target_tokens[batch.loss_weights > 0].tolist()) <= {1, *range(500, 600)}
    with pytest.raises(ValueError, match="longer than a row of 64"):
        loader(Tokens.of_pairs(pairs), seq_len=64).batch(0)


def test_inputs_end_with_eos_where_asked_for(tokens):
    made = loader(tokens, mixture="ul2r_eos")
    for row in range(rows_in(made, 1)):
        for segment, example in made.segments(row):
            denoiser = made.mixture[segment.denoiser_id]
            assert denoiser.inputs_eos == (denoiser.name != "s")
            assert not denoiser.inputs_eos or example.inputs[-1] == 1


def test_18_bytes_a_token(tokens):
    batch = loader(tokens).batch(0)
    assert sum(x.nbytes for x in batch) <= 18 * batch.input_tokens.size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixture": "ulr2"}, "did you mean 'ul2'"),
        ({"mixture": "Span(x=1)"}, "none of SpanCorruption"),
        ({"mixture": "PrefixLM('s')"}, "its name"),
        ({"mixture": "PrefixLM(name='s'), Causal(name='s')"}, "each denoiser its own"),
        ({"mixture": "PrefixLM(name='s', rate=0.1)"}, "rate"),
        ({"seq_len": 4}, "at least 8"),
        ({"batch_size": 0}, "at least"),
        ({"batch_ramp": ((5, 8), (5, 16))}, "rising steps"),
        ({"batch_ramp": ((0, 8),)}, "rising steps"),
        ({"batch_ramp": ((5, 0),)}, "at least 1 row"),
    ],
)
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**change)


def test_bad_sources(tokens):
    with pytest.raises(ValueError, match=r"holds sentinels \(\[950\], 1 tokens"):
        loader(Tokens.of([[5] * 300 + [950] + [6] * 300])).batch(0)
    with pytest.raises(ValueError, match="expected at least 2"):
        loader(Tokens.of([[]]))
    with pytest.raises(ValueError, match="one kind at a time"):
        loader([Weighted(tokens), Weighted(Tokens.of_pairs([([1], [2])] * 9))])


def test_a_mixture_written_in_a_config_is_that_of_python():
    text = ", ".join(repr(d) for d in ul2r.UL2)
    assert ul2r.mixture(text) == ul2r.UL2
    assert dataclasses.asdict(DataConfig(mixture=text))["mixture"] == text
