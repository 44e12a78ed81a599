import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.loaders import SENTINELS, SYMBOLS, build_loader, count_rows, few_tokens, random_documents

from upalm import ul2r
from upalm.data.loader import statistics
from upalm.data.tokens import Tokens


def source_of(loader, segment, example):
    """Source text of a segment, by splicing its targets into its inputs."""
    segmenter = loader.segmenters[segment.denoiser_id]
    inputs = example.inputs[len(segmenter.mode_ids) : len(example.inputs) - len(segmenter.inputs_eos_ids)]
    targets = example.targets[: len(example.targets) - len(segmenter.eos_ids)]
    assert tuple(example.inputs[: len(segmenter.mode_ids)]) == SYMBOLS.modes.get(segmenter.denoiser.mode, ())
    if isinstance(segmenter.denoiser, ul2r.SpanCorruption | ul2r.Gaps):
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
        shortest=st.floats(0.01, 1),
    )
    | st.builds(ul2r.Gaps, name=st.just("g"), mean_span=st.floats(1, 40), n_spans=st.integers(1, 9))
    | st.builds(ul2r.Lines, name=st.just("l"), mean_span=st.floats(1, 40))
    | st.builds(
        ul2r.PrefixLM,
        name=st.just("s"),
        mode=st.just("s2s"),
        corruption_rate=st.floats(0.05, 0.5),
        shortest=st.floats(0.01, 1),
    )
    | st.just(ul2r.Causal(name="c")),
    min_size=1,
    max_size=4,
    unique_by=lambda d: d.name,
).map(lambda denoisers: ", ".join(map(repr, denoisers)))


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 400), min_size=1, max_size=12).filter(lambda x: sum(x) + len(x) >= 2),
    mixture=st.sampled_from(sorted(ul2r.MIXTURES)) | mixtures,
    seq_len=st.sampled_from([128, 200, 256]),
    layout=st.sampled_from(["concatenated", "documents"]),
    joint_budget=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_an_epoch_holds_every_token_once(lengths, mixture, seq_len, layout, joint_budget, seed):
    tokens = Tokens.from_documents(random_documents(lengths, seed))
    options = {"mixture": mixture, "seq_len": seq_len, "layout": layout, "joint_budget": joint_budget}
    loader = build_loader(tokens, seed, **options)
    shuffled, plan = loader.window(0, 0)
    edges = set(shuffled.offsets.tolist())
    sources = {}
    for row in range(len(plan.rows)):
        size = 0
        for segment, example in loader.segments(row):
            sources[segment.start] = source_of(loader, segment, example)
            size += len(example.inputs) + len(example.targets)
            inside = edges & set(range(segment.start + 1, segment.end))
            assert layout == "concatenated" or not inside, "a segment reaches over a document's end"
        assert size <= seq_len
    whole = np.concatenate([sources[start] for start in sorted(sources)])
    assert np.array_equal(whole, shuffled.ids)
    assert sorted(whole.tolist()) == sorted(tokens.ids.tolist())


@pytest.mark.parametrize("layout", ["concatenated", "documents"])
@pytest.mark.parametrize("mixture", sorted(ul2r.MIXTURES))
def test_rows_are_full(mixture, layout):
    lengths = np.random.default_rng(0).lognormal(5.5, 1.0, 800).astype(int)
    loader = build_loader(
        Tokens.from_documents(random_documents(lengths)), mixture=mixture, layout=layout, seq_len=1024
    )
    n = count_rows(loader, 1)
    counted = statistics(loader, n)
    assert sum(d.source_tokens for d in counted.denoisers) == loader.corpora[0].n_tokens
    # the last row of the window is as full as the text allows
    assert counted.padding - 1024 <= 0.005 * counted.positions


def test_rows_fit_their_budgets():
    tokens = few_tokens()
    loader = build_loader(tokens, mixture="ul2r", seq_len=128)
    for row in range(count_rows(loader, 2)):
        for segment, example in loader.segments(row):
            assert len(example.inputs) <= 64 and len(example.targets) <= 64, segment


def test_weights_are_shares_of_examples():
    """A denoiser that does not fit a row begins the next and is not drawn again, so short rooms keep the shares."""
    loader = build_loader(Tokens.from_documents(random_documents([400] * 2000)), mixture="ul2r_split_x", seq_len=200)
    counted = statistics(loader, count_rows(loader, 1))
    n = sum(d.examples for d in counted.denoisers)
    for counts, denoiser in zip(counted.denoisers, ul2r.UL2R_SPLIT_X, strict=True):
        p = denoiser.weight
        assert counts.examples / n == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / n))


def ends_of_answers(mixture):
    """Position of the EOS of every answer to a prompt with gaps, in rows of 256 that inputs and targets share."""
    tokens = Tokens.from_documents(random_documents([4000] * 40))
    loader = build_loader(tokens, mixture=mixture, seq_len=256, joint_budget=True)
    segments = [pair for row in range(count_rows(loader, 1)) for pair in loader.segments(row)]
    return np.array([len(e.inputs) + len(e.targets) for s, e in segments if loader.mixture[s.denoiser_id].name != "s"])


def test_where_an_answer_ends_is_no_constant_if_chunks_vary():
    """A model learns where EOS stands if it has one place, instead of where an answer ends."""
    fixed, varied = ends_of_answers("ul2r_infill"), ends_of_answers("ul2r_gaps")
    assert np.mean(fixed >= 250) > 0.95
    most_common = np.bincount(varied // 8).max() / len(varied)
    assert most_common < 0.2 and varied.min() < 64 < 200 < varied.max()


def test_chunks_are_of_any_length_from_the_shortest_on():
    """But for the last of a row, which is cut to the room, and those that a document ends."""
    denoiser = ul2r.PrefixLM(name="s", shortest=0.5)
    loader = build_loader(Tokens.from_documents(random_documents([20_000])), mixture=(denoiser,), seq_len=512)
    longest = loader.segmenters[0].longest_chunks[-1]
    _, plan = loader.window(0, 0)
    first = [plan.segments[a].end - plan.segments[a].start for a, b in plan.rows if b - a > 1]
    assert min(first) >= longest // 2 and max(first) <= longest
    assert len(set(first)) > len(first) // 2
