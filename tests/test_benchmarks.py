"""Arithmetic and labels of the benchmarks, which need no device of theirs."""

import dataclasses
import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import upalm
from upalm import ul2r
from upalm.planning.hlo import Program
from upalm.planning.search import WITHOUT_TPU

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_kernels_of_as_many_layers_as_chunks_of_the_loss_are_told_apart():
    gpu_shares = import_module("gpu_shares")
    n, vocab_size = gpu_shares.LOSS_CHUNKS, 96

    def step(x_TD, weights_LDD, table_VD):
        x_TD = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x_TD, weights_LDD)[0]
        chunks = x_TD.reshape(n, -1, x_TD.shape[-1])
        return jax.lax.scan(lambda sum, x: (sum + jnp.exp(x @ table_VD.T).sum(), None), 0.0, chunks)[0]

    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((16, 8), (n, 8, 8), (vocab_size, 8))]
    program = Program.parse(jax.jit(step).lower(*arguments).compile().as_text() or "")
    runs = {(part, runs) for part, runs, _, _ in gpu_shares.kernels(program, vocab_size) if part != "products"}
    assert {("elementwise in layers", n), ("softmax of the loss", n)} <= runs


def test_decoding_kernels_are_counted_with_the_caches_of_the_timed_run():
    decoded = import_module("gpu_shares").Case(decode=1).model
    assert decoded.seq_len == import_module("gpu_speed").Case().n_slots == 1 + 128 + 288


# --- Gaps between characters ----------------------------------------------------------------------


def test_gaps_between_characters_keep_the_text_and_the_lengths(source_text):
    """What is left out stands at the end, and the denoiser keeps the lengths that the loader counts on."""
    script = import_module("character_cuts")
    tokenizer = script.load_tokenizer(str(upalm.PALM_TINY))
    tokens, symbols = np.array(tokenizer.encode(source_text), np.int32), tokenizer.symbols
    n_cut = 0
    gap, words = script.mixtures(upalm.PALM_TINY)["half between characters"][-2:]
    for denoiser in (gap, words, dataclasses.replace(gap, mean_span=1e4)):  # the last one's spans are as long as may be
        denoiser, rng = dataclasses.replace(denoiser, share=1.0), np.random.default_rng(0)
        for seed in range(60):
            chunk = tokens[rng.integers(len(tokens) - 256) :][: rng.integers(64, 256)]
            plain = ul2r.Gaps.__call__(denoiser, chunk, np.random.default_rng(seed), symbols)
            example = denoiser(chunk, np.random.default_rng(seed), symbols)
            assert len(example.inputs) + len(example.targets) == len(chunk) + 2 * denoiser.n_sentinels(len(chunk))
            most = denoiser.lengths(len(chunk))
            assert len(example.inputs) <= most[0] and len(example.targets) <= most[1]
            sentinels = list(symbols.sentinels[: denoiser.n_spans])
            parts = [tokenizer.decode(x) for x in script.split_at(example.inputs, sentinels)]
            _, *spans = (tokenizer.decode(x) for x in script.split_at(example.targets, sentinels))
            whole = "".join(text for pair in zip(parts, [*spans, ""], strict=True) for text in pair)
            assert tokenizer.decode(chunk).startswith(whole) and all(spans)
            n_cut += not np.array_equal(example.targets, plain.targets)
    assert n_cut > 90  # of 180; others have a document's end, a token of one character, or too little text


# --- Tables of docs/plans.md ----------------------------------------------------------------------


@pytest.fixture
def rentable(monkeypatch):
    for name, value in WITHOUT_TPU.items():  # the script sets them where it is imported; they go after the test
        monkeypatch.setenv(name, value)
    return import_module("rentable")


needs_libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="no libtpu, which describes slices of TPUs")


def golden(name: str) -> dict:
    return json.loads((ROOT / "tests" / "golden" / name).read_text())


def test_table_of_the_full_sizes_is_that_of_the_golden_plans():
    page = (ROOT / "docs" / "plans.md").read_text()
    assert import_module("plans").table(golden("plans.json")) in page, "run: python benchmarks/plans.py WORDS"


@needs_libtpu
def test_tables_of_machines_for_rent_are_those_of_the_golden_plans(rentable):
    page = (ROOT / "docs" / "plans.md").read_text()
    assert rentable.with_tables(page, golden("rentable.json")) == page, "run: python benchmarks/rentable.py WORDS"


def test_gpus_of_another_kind_are_timed_by_their_rates(rentable):
    """B200 has 2.28 times the FLOP/s of H100, 2.39 times its bandwidth and twice its links."""
    row = next(row for row in rentable.RENTED if row.topology == "B200:8" and row.timed_from)
    before = golden("rentable.json")[row._replace(topology=row.timed_from).title]
    f = rentable.retimed(before, row)
    ratios = {name: before["seconds"][name] / f["seconds"][name] for name in f["seconds"]}
    assert ratios == pytest.approx({"compute": 2250 / 989, "memory": 8000 / 3350, "interconnect": 2})
    assert f["step_seconds"] == f["seconds"][f["bound_by"]] == max(f["seconds"].values())
    assert f["serial_seconds"] == pytest.approx(sum(f["seconds"].values())) and f["topology"] == "B200:8"
    assert f["capacity_gib"] == 180e9 / 2**30 and f["memory_gib"] == before["memory_gib"]


@needs_libtpu
def test_steps_on_more_chips_share_all_but_whole_weights(rentable):
    """16 chips have the compiled row's bounds. More chips share the rest of main memory's traffic, not the weights."""
    f = golden("rentable.json")[rentable.TITLE_OF_16]
    bandwidth, whole = rentable.CHIPS["v6e"].bandwidth, rentable.whole_weights(f)
    _, same = rentable.scaled(f, 16)
    assert same == pytest.approx(f["seconds"], rel=1e-6)
    (_, on_32), (_, on_64) = rentable.scaled(f, 32), rentable.scaled(f, 64)
    assert on_32["compute"] == pytest.approx(f["seconds"]["compute"] / 2)
    shared = f["seconds"]["memory"] - whole / bandwidth
    assert on_32["memory"] == pytest.approx(shared / 2 + whole / bandwidth)
    assert on_64["memory"] == pytest.approx(shared / 4 + whole / bandwidth / 2), "a model axis divides them"


@needs_libtpu
def test_a_step_compiled_for_more_chips_is_near_the_arithmetic(rentable):
    """XLA sums gradients whole on 16 chips, and scatters more than half of them on 32: those take and send less."""
    found = golden("rentable.json")
    (_, seconds), compiled = rentable.scaled(found[rentable.TITLE_OF_16], 32), found[rentable.COMPILED_FOR_32.title]
    ratios = {name: seconds[name] / compiled["seconds"][name] for name in seconds}
    assert ratios["compute"] == pytest.approx(1, rel=1e-3)
    assert 1 <= ratios["memory"] < 1.1 and 1 <= ratios["interconnect"] < 1.2


@needs_libtpu
def test_a_mesh_axis_within_one_dimension_has_two_of_four_links(rentable):
    """On two slices of 16 x 16 the model axis lies along one dimension, and each slice's half of the data axis, too."""
    f = golden("rentable.json")[rentable.TITLE_OF_16]
    (_, on_32), (_, on_512) = rentable.scaled(f, 32), rentable.scaled(f, 512)
    chip, model = rentable.CHIPS["v6e"], rentable.MODELS["Llama 3.1 8B"]
    stream = 10 * model.n_layers * 2048 * model.d_model * 2 * 15 / 16
    weights = on_32["interconnect"] * 4 * chip.link / 16
    assert on_512["interconnect"] == pytest.approx(max(stream, weights * 30 / 31) / (2 * chip.link), rel=1e-6)
    assert on_512["network"] == pytest.approx(weights / 31 / chip.network, rel=1e-6)


def test_weights_are_whole_where_they_are_gathered_or_summed(rentable):
    """A ring of four chips sends three quarters of 8 GiB gathered and 4 scattered, and twice that of 2 summed."""
    kinds = {"all-gather": 6.0, "reduce-scatter": 3.0, "all-reduce": 3.0}
    collectives = [{"kind": kind, "axes": "data", "gib": gib} for kind, gib in kinds.items()]
    collectives.append({"kind": "all-gather", "axes": "model", "gib": 5.0})
    assert rentable.whole_weights({"mesh": {"data": 4}, "collectives": collectives}) == (2 * 8 + 2 * 4 + 3 * 2) * 2**30
