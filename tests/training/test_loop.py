import dataclasses
import json
import os
import signal
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import optax
import pytest

from upalm.checkpoints.arrays import to_arrays
from upalm.checkpoints.folder import export, load_model
from upalm.checkpoints.manager import Checkpoints
from upalm.data import shards
from upalm.data.config import DataConfig
from upalm.data.loader import Loader
from upalm.data.tokens import Tokens
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder
from upalm.training import config as config_module
from upalm.training import loop, step
from upalm.training.launch import prepare, run
from upalm.training.loop import Interrupted
from upalm.training.loss import loss_fn
from upalm.training.metrics import OF_THE_MACHINE
from upalm.training.optim import Adafactor, AdamW, Schedule

MODEL = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=2, d_head=16, d_ff=64, seq_len=64)


@pytest.fixture
def config(tmp_path):
    return config_module.TrainConfig(
        out=tmp_path / "run",
        start=config_module.Scratch(MODEL),
        data=DataConfig(seq_len=64, batch_size=4, joint_budget=True),
        optimizer=Adafactor(Schedule("cosine", peak=1e-2, final=1e-4)),
        n_steps=8,
        log_every=1,
        save_every=3,
        eval_every=4,
        eval_batches=2,
    )


@pytest.fixture(scope="module")
def tokens(tokenizer, source_text):
    pieces = [source_text[i : i + 3000] for i in range(0, 60_000, 3000)]
    return Tokens.from_documents(tokenizer.encode_documents(pieces))


def fit(config, tokenizer, tokens, model=None):
    model = Decoder(MODEL, key=jax.random.key(0)) if model is None else model
    return loop.fit(config, model, tokenizer, tokens, tokens)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_microbatched_is_whole(tokenizer, tokens):
    """Loss-token counts differ between microbatches, so that a mean of means would fail."""
    loader = Loader(tokens, DataConfig(seq_len=64, batch_size=8), tokenizer.symbols, seed=0)
    batch = loader.batch(0)
    counts = batch.loss_weights.reshape(4, -1).sum(-1)
    assert counts.max() > 1.2 * counts.min()
    models = []
    for n in (1, 2, 4, 8):
        optimizer = optax.sgd(1.0)
        model = Decoder(MODEL, key=jax.random.key(0))
        state = step.TrainState(model, optimizer.init(model))
        state, reported = step.train_step(state, step.microbatched(batch, n), optimizer=optimizer, n_denoisers=3)
        models.append(to_arrays(state.model) | {"nll": reported.sums.nll})
    for other in models[1:]:
        for name in other:
            np.testing.assert_allclose(other[name], models[0][name], rtol=2e-4, atol=2e-5)


def test_the_step_is_gradient_descent_on_the_mean_loss(tokenizer, tokens):
    batch = Loader(tokens, DataConfig(seq_len=64, batch_size=2), tokenizer.symbols, seed=0).batch(0)
    model, optimizer = Decoder(MODEL, key=jax.random.key(0)), optax.sgd(0.5)
    expected = eqx.filter_grad(lambda m: loss_fn(m, batch)[0] / batch.loss_weights.sum())(model)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, model, expected)
    state = step.TrainState(jax.tree.map(np.array, model), optimizer.init(model))
    state, _ = step.train_step(state, step.microbatched(batch, 1), optimizer=optimizer, n_denoisers=3)
    for a, b in zip(jax.tree.leaves(state.model), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("optimizer", [Adafactor(Schedule(peak=1e-2)), AdamW(Schedule(peak=1e-3))])
def test_resumed_is_uninterrupted_bit_for_bit(config, tokenizer, tokens, optimizer, tmp_path, monkeypatch):
    config = dataclasses.replace(config, optimizer=optimizer)
    whole = fit(config, tokenizer, tokens)

    broken = dataclasses.replace(config, out=tmp_path / "broken")
    real, calls = step.train_step, []

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", stopping)
    with pytest.raises(Interrupted, match="after step 5"):
        fit(broken, tokenizer, tokens)
    monkeypatch.setattr(loop, "train_step", real)
    resumed = fit(broken, tokenizer, tokens)
    assert same(whole, resumed)

    def lines(folder):
        rows = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in rows]

    assert lines(config.out) == lines(broken.out)
    loaded, _ = load_model(broken.out)
    assert same(loaded, whole)


def test_the_step_compiles_once(config, tokenizer, tokens):
    """A weakly typed parameter, which comes back strongly typed, made it compile again at the second step."""
    before = step.train_step._cache_size()
    fit(dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=3)), tokenizer, tokens)
    assert step.train_step._cache_size() == before + 1


def test_the_loss_falls(config, tokenizer, tokens):
    config = dataclasses.replace(config, n_steps=60, save_every=60, eval_every=60)
    fit(config, tokenizer, tokens)
    rows = [json.loads(x) for x in (config.out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.7
    seen = {key for row in rows for key in row}
    assert {"loss_r", "loss_x", "loss_s", "grad_norm", "learning_rate", "tokens_per_second"} <= seen


def test_the_checkpoint_says_how_its_inputs_end(config, tokenizer, tokens):
    fit(dataclasses.replace(config, out=config.out / "plain", n_steps=1), tokenizer, tokens)
    assert not load_model(config.out / "plain")[1].inputs_eos
    data = dataclasses.replace(config.data, mixture="ul2r_eos")
    fit(dataclasses.replace(config, out=config.out / "eos", data=data, n_steps=1), tokenizer, tokens)
    assert load_model(config.out / "eos")[1].inputs_eos


def test_an_infinite_loss_stops_the_run_and_names_step_and_folder(config, tokenizer, tokens):
    model = Decoder(MODEL, key=jax.random.key(0))
    model = eqx.tree_at(lambda m: m.embed, model, model.embed * np.nan)
    with pytest.raises(FloatingPointError, match="at step 1 .* of .*run"):
        fit(config, tokenizer, tokens, model)


def test_a_folder_of_another_run_is_refused_with_the_difference(config, tokenizer, tokens):
    fit(config, tokenizer, tokens)
    with pytest.raises(ValueError, match="seed: 0 there, 1 here"):
        fit(dataclasses.replace(config, seed=1), tokenizer, tokens)
    (config.out.parent / "other").mkdir()
    (config.out.parent / "other" / "file").write_text("")
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        fit(dataclasses.replace(config, out=config.out.parent / "other"), tokenizer, tokens)


def test_export_and_load(tmp_path, tokenizer):
    model = Decoder(MODEL, key=jax.random.key(0))
    export(tmp_path / "m", model, tokenizer, {})
    loaded, loaded_tokenizer = load_model(tmp_path / "m")
    assert loaded_tokenizer.hash == tokenizer.hash
    assert loaded.config == model.config
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(model), strict=True):
        np.testing.assert_allclose(a, b, rtol=2**-8)


def damage(folder: Path, how: str):
    weights = folder / "model.safetensors"
    if how == "flipped":
        content = bytearray(weights.read_bytes())
        content[-100] ^= 1
        weights.write_bytes(content)
        return
    (folder / "manifest.json").unlink()  # what is found without it
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "tokenizer":
        other = folder / "tokenizer.model"
        other.write_bytes(other.read_bytes() + b"\x12\x00")
    elif how == "size":
        config = json.loads((folder / "config.json").read_text())
        config["model"]["d_ff"] = 128
        (folder / "config.json").write_text(json.dumps(config))
    elif how == "json":
        (folder / "config.json").write_text("{")
    elif how == "absent":
        (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", r"model\.safetensors is damaged or truncated"),
        ("flipped", r"model\.safetensors is damaged: its checksum"),
        ("tokenizer", "put the right tokenizer there"),
        ("size", "has shape"),
        ("json", r"config\.json is damaged"),
        ("absent", r"holds no config\.json"),
    ],
)
def test_bad_checkpoints_are_named(tmp_path, tokenizer, how, message):
    export(tmp_path / "m", Decoder(MODEL, key=jax.random.key(0)), tokenizer, {})
    damage(tmp_path / "m", how)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "m")


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_model(tmp_path / "nowhere")


def test_a_truncated_orbax_checkpoint_is_named(config, tokenizer, tokens):
    fit(config, tokenizer, tokens)
    for path in sorted((config.out / "steps").rglob("*")):
        if path.is_file() and path.stat().st_size > 1000:
            os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="none of the 2 checkpoints .* can be read: cannot read model of .*steps/8"):
        load_model(config.out)


def test_a_checkpoint_of_another_optimizer_is_refused(config, tokenizer, tokens):
    fit(config, tokenizer, tokens)
    checkpoints = Checkpoints(config.out)
    adamw = AdamW().build(10).init(Decoder(MODEL, key=jax.random.key(0)))
    with pytest.raises(ValueError, match="optimizer"):
        checkpoints.restore("optimizer", adamw)
    checkpoints.close()


def test_rows_longer_than_the_models(config, tokenizer, tmp_path):
    export(tmp_path / "m", Decoder(MODEL, key=jax.random.key(0)), tokenizer, {})
    data = dataclasses.replace(config.data, seq_len=128)
    config = dataclasses.replace(config, start=config_module.Continue(tmp_path / "m"), data=data)
    with pytest.raises(ValueError, match="rows of 128 are longer than the model's 64"):
        prepare(config)


def test_trains_from_shards_with_their_tokenizer(config, tokenizer, tmp_path, source_text):
    (tmp_path / "a.txt").write_text(source_text)
    shards.build(str(tmp_path / "a.txt"), str(tmp_path / "built"), tokenizer)
    data = dataclasses.replace(config.data, source=str(tmp_path / "built"))
    out = run(dataclasses.replace(config, data=data, n_steps=2))
    assert load_model(out)[1].hash == tokenizer.hash
    small = config_module.Scratch(dataclasses.replace(MODEL, vocab_size=400))
    with pytest.raises(ValueError, match="512 subwords, the model 400 embeddings"):
        run(dataclasses.replace(config, out=tmp_path / "b", start=small, data=data))


@pytest.mark.parametrize("change", [{"n_steps": 0}, {"accumulation": 3}])
def test_bad_config(config, change):
    with pytest.raises(ValueError, match="n_steps|accumulation"):
        dataclasses.replace(config, **change)
