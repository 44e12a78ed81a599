import hashlib

import numpy as np
import pytest
from support.loaders import SENTINELS, SYMBOLS, build_loader, count_rows, few_tokens

from upalm.data.config import DataConfig, Weighted
from upalm.data.loader import Loader
from upalm.data.tokens import Tokens


@pytest.fixture(scope="module")
def tokens():
    return few_tokens()


def digest(batches):
    return hashlib.sha256(b"".join(x.tobytes() for batch in batches for x in batch)).hexdigest()


def test_a_batch_is_a_pure_function_of_seed_and_step(tokens):
    first = build_loader(tokens, batch_size=8)
    n = 2 * count_rows(first, 2) // 8  # four epochs
    forwards = [first.batch(k) for k in range(n)]
    backwards = build_loader(tokens, batch_size=8)
    for k in reversed(range(n)):
        assert digest([backwards.batch(k)]) == digest([forwards[k]])
    assert digest(build_loader(tokens, batch_size=8).batches(n - 3, n)) == digest(forwards[-3:])
    assert digest([build_loader(tokens, seed=1, batch_size=8).batch(0)]) != digest(forwards[:1])


@pytest.mark.parametrize("count", [1, 2, 8])
def test_processes_share_a_batch(tokens, count):
    whole = [build_loader(tokens, batch_size=8).batch(k) for k in range(20)]
    parts = [build_loader(tokens, batch_size=8, rows={8: np.array_split(np.arange(8), count)[i]}) for i in range(count)]
    for k, batch in enumerate(whole):
        shared = [np.concatenate(x) for x in zip(*(part.batch(k) for part in parts), strict=True)]
        assert digest([shared]) == digest([batch])


def test_a_ramp_takes_the_same_rows_in_larger_batches(tokens):
    """PaLM's: rows go on where they were, and no row is left out or taken twice."""
    ramp = build_loader(tokens, batch_size=2, batch_ramp=((3, 4), (5, 8)))
    assert [len(ramp.batch(k).input_tokens) for k in range(7)] == [2, 2, 2, 4, 4, 8, 8]
    whole = build_loader(tokens, batch_size=30).batch(0)
    joined = [np.concatenate(x) for x in zip(*(ramp.batch(k) for k in range(7)), strict=True)]
    assert digest([joined]) == digest([whole])
    config = DataConfig(batch_size=512, batch_ramp=((50_000, 1024), (115_000, 2048)))
    tokens_at = [config.rows_before(step) * 2048 / 1e9 for step in (50_000, 115_000, 255_000)]
    assert [round(t, 1) for t in tokens_at] == [52.4, 188.7, 775.9]  # PaLM 540B


def test_skipped_batches_are_left_out_and_the_rest_follow(tokens):
    plain, skipping = build_loader(tokens, batch_size=4), build_loader(tokens, batch_size=4, skips=[(2, 3), (4, 1)])
    taken = [0, 1, 5, 6, 8, 9]
    assert digest(skipping.batch(k) for k in range(6)) == digest(plain.batch(k) for k in taken)


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [1, 2])
def test_workers_change_nothing(tokens, n_workers):
    expected = digest(build_loader(tokens).batch(k) for k in range(5, 30))
    assert digest(build_loader(tokens, n_workers=n_workers).batches(5, 30)) == expected


def test_grains_state_is_the_step(tokens):
    rest = iter(build_loader(tokens).dataset(0, 20))
    for _ in range(7):
        next(rest)
    resumed = iter(build_loader(tokens).dataset(0, 20))
    resumed.set_state(rest.get_state())
    assert digest(resumed) == digest(build_loader(tokens).batch(k) for k in range(7, 20))


def test_noise_and_order_are_fresh_in_every_epoch(tokens):
    loader = build_loader(tokens)
    firsts = [next(iter(loader.segments(count_rows(loader, k)))) for k in range(4)]
    assert len({example.targets.tobytes() for _, example in firsts}) == 4


def test_corpora_are_mixed_by_weight():
    """Corpus a has even ids, b odd ones."""
    a, b = (
        Tokens.concatenate([np.random.default_rng(i).integers(0, 400, 5000) * 2 + i for _ in range(20)])
        for i in range(2)
    )
    source = [Weighted(a, 0.75), Weighted(b, 0.25)]
    loader = Loader(source, DataConfig(mixture="causal", seq_len=64, batch_size=8), SYMBOLS, seed=0)
    is_b = np.array([loader.batch(k).target_tokens[:, 0] % 2 for k in range(50)]).ravel()
    assert is_b.mean() == 0.25
    again = Loader(source, loader.config, SYMBOLS, seed=0)
    assert digest([again.batch(40)]) == digest([loader.batch(40)])


def test_supervised_pairs_become_rows():
    pairs = [(list(range(20, 20 + i)), list(range(500, 503 + i % 7))) for i in range(1, 60)]
    loader = build_loader(Tokens.from_pairs(pairs), seq_len=128)
    n = count_rows(loader, 1)
    examples = [(e.inputs.tolist(), e.targets.tolist()) for row in range(n) for _, e in loader.segments(row)]
    assert sorted(examples) == sorted((inputs, [*targets, 1]) for inputs, targets in pairs)
    batch = loader.batch(0)
    assert set(batch.target_tokens[batch.loss_weights > 0].tolist()) <= {1, *range(500, 600)}
    with pytest.raises(ValueError, match="2 of 59 examples are longer than a row of 64, the longest has 66 tokens"):
        build_loader(Tokens.from_pairs(pairs), seq_len=64)  # before a window is planned


def test_inputs_end_with_eos_if_the_denoiser_says_so(tokens):
    loader = build_loader(tokens, mixture="ul2r_eos")
    for row in range(count_rows(loader, 1)):
        for segment, example in loader.segments(row):
            denoiser = loader.mixture[segment.denoiser_id]
            assert denoiser.inputs_eos == (denoiser.name != "s")
            assert not denoiser.inputs_eos or example.inputs[-1] == 1


@pytest.mark.parametrize(("mixture", "low", "high"), [("ul2r_eos", 0.0, 0.0), ("ul2r_infill", 0.6, 0.95)])
def test_rows_for_infilling_have_text_after_the_gaps(tokens, mixture, low, high):
    """Inputs with gaps end in EOS, and before it in text if masks are rolled; else in a sentinel."""
    loader = build_loader(tokens, mixture=mixture)
    segments = [pair for row in range(count_rows(loader, 1)) for pair in loader.segments(row)]
    inputs = [e.inputs for segment, e in segments if loader.mixture[segment.denoiser_id].name != "s"]
    with_gaps = [x for x in inputs if np.isin(x, SENTINELS).any()]
    assert len(with_gaps) > 10 and all(x[-1] == 1 for x in with_gaps)
    assert low <= np.mean([x[-2] not in SENTINELS for x in with_gaps]) <= high


def test_18_bytes_a_token(tokens):
    batch = build_loader(tokens).batch(0)
    assert sum(x.nbytes for x in batch) <= 18 * batch.input_tokens.size


def test_bad_sources(tokens):
    with pytest.raises(ValueError, match=r"holds sentinels \(\[950\], 1 tokens"):
        build_loader(Tokens.from_documents([[5] * 300 + [950] + [6] * 300])).batch(0)
    with pytest.raises(ValueError, match="expected at least 2"):
        build_loader(Tokens.from_documents([[]]))
    with pytest.raises(ValueError, match="step is -1"):
        build_loader(tokens).batch(-1)
    with pytest.raises(ValueError, match="one kind at a time"):
        build_loader([Weighted(tokens), Weighted(Tokens.from_pairs([([1], [2])] * 9))])
