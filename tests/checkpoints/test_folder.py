"""Exports, and checkpoint folders that are damaged or missing."""

import json

import jax
import numpy as np
import pytest
from support.runs import MODEL

from upalm.checkpoints import folder as checkpoint_folder
from upalm.checkpoints.folder import export, load_model, open_checkpoint
from upalm.checkpoints.lineage import CheckpointInfo
from upalm.files import sha256_file
from upalm.model.palm import Decoder


def test_export_opens_with_equal_model_and_tokenizer(tmp_path, tokenizer):
    model = Decoder(MODEL, key=jax.random.key(0))
    export(tmp_path / "m", model, tokenizer, {})
    loaded, loaded_tokenizer, _ = load_model(tmp_path / "m")
    assert loaded_tokenizer.hash == tokenizer.hash
    assert loaded.config == model.config
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(model), strict=True):
        np.testing.assert_allclose(a, b, rtol=2**-8)


def test_weights_are_hashed_once_and_only_where_they_are_read(tmp_path, tokenizer, monkeypatch):
    hashed = []
    monkeypatch.setattr(checkpoint_folder, "sha256_file", lambda path: hashed.append(path.name) or sha256_file(path))
    export(tmp_path / "m", Decoder(MODEL, key=jax.random.key(0)), tokenizer, {})
    hashed.clear()
    open_checkpoint(tmp_path / "m")
    assert "model.safetensors" not in hashed and "config.json" in hashed
    load_model(tmp_path / "m")
    assert hashed.count("model.safetensors") == 1


def test_export_without_its_weights_is_damaged(tmp_path, tokenizer):
    export(tmp_path / "m", Decoder(MODEL, key=jax.random.key(0)), tokenizer, {})
    (tmp_path / "m" / "model.safetensors").unlink()
    for opened in (open_checkpoint, load_model):
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            opened(tmp_path / "m")


def damage_export(folder, how):
    weights = folder / "model.safetensors"
    if how == "flipped":
        content = bytearray(weights.read_bytes())
        content[-100] ^= 1
        weights.write_bytes(content)
        return
    (folder / "manifest.json").unlink()  # damage must be detected without it, too
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "tokenizer":
        other = folder / "tokenizer.model"
        other.write_bytes(other.read_bytes() + b"\x12\x00")
    elif how == "size":
        config = json.loads((folder / "config.json").read_text())
        config["model"]["d_ff"] = 128
        (folder / "config.json").write_text(json.dumps(config))
    elif how == "newer":
        config = json.loads((folder / "config.json").read_text())
        config["model"]["n_experts"] = 8
        (folder / "config.json").write_text(json.dumps(config))
    elif how == "theirs":
        (folder / "config.json").write_text('{"model_type": "cohere"}')
    elif how == "list":
        (folder / "config.json").write_text("[]")
    elif how == "keys":
        (folder / "config.json").write_text('{"format": 1}')
    elif how == "manifest":
        (folder / "manifest.json").write_text("[1, 2")
    elif how == "json":
        (folder / "config.json").write_text("{")
    elif how == "deep":
        (folder / "config.json").write_text("[" * 100_000)
    elif how == "deep manifest":
        (folder / "manifest.json").write_text("[" * 100_000)
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
        ("deep", r"config\.json is damaged"),
        ("deep manifest", r"manifest\.json is damaged"),
        ("newer", r"a model that this version does not know \(.*n_experts"),
        ("theirs", "is not the config.json of an upalm checkpoint; `upalm import-hf`"),
        ("list", r"config\.json is damaged: expected an object"),
        ("keys", "lacks model, run, tokenizer_hash"),
        ("manifest", r"manifest\.json is damaged"),
        ("absent", r"holds no config\.json"),
    ],
)
def test_damaged_exports_are_named(tmp_path, tokenizer, how, message):
    export(tmp_path / "m", Decoder(MODEL, key=jax.random.key(0)), tokenizer, {})
    damage_export(tmp_path / "m", how)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "m")


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("stored", "mixture", "info"),
    [
        ({"inputs_eos": True, "gaps_trained": True}, "ul2r_eos", CheckpointInfo("ul2r_eos", True, True)),
        ({}, "causal", CheckpointInfo("causal", False, False)),  # from before `gaps_trained` was written
        ({}, "ul2r", CheckpointInfo("ul2r", False, None)),
        ({"inputs_eos": False, "gaps_trained": False}, None, CheckpointInfo(None, False, False)),  # an import
    ],
)
def test_history_of_older_folders_keeps_its_meaning(tmp_path, tokenizer, stored, mixture, info):
    run = {"data": {"mixture": mixture}} if mixture else {}
    export(tmp_path / "m", Decoder(MODEL, key=jax.random.key(0)), tokenizer, run)
    (tmp_path / "m" / "manifest.json").unlink()
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    del config["inputs_eos"], config["gaps_trained"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | stored))
    assert load_model(tmp_path / "m").info == info
