"""Imports: refusals by name that leave nothing, crashes, memory."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from support.cohere import edit, save, small_cohere

from upalm.checkpoints.shipped import PALM_TINY
from upalm.interop.hf_import import import_hf


@pytest.fixture(scope="module")
def good(tmp_path_factory, source_text):
    return save(small_cohere(), tmp_path_factory.mktemp("good") / "hf", source_text)


def rewrite(path: Path, change) -> None:
    arrays = safetensors.numpy.load_file(path)
    change(arrays)
    safetensors.numpy.save_file(arrays, path)


def with_more_tokens(folder: Path) -> dict:
    """A tokenizer.json with more added tokens than the table has rows."""
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    more = [tokens[0] | {"id": 700 + i, "content": f"<more_{i}>"} for i in range(5)]
    return {"added_tokens": [*tokens, *more]}


EMBED, KEY = "model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight"
DAMAGE = {
    "Phi3ForCausalLM: supported are CohereForCausalLM": lambda d: edit(
        d / "config.json", architectures=["Phi3ForCausalLM"]
    ),
    "lacks .*up_proj.*that config.json speaks of": lambda d: rewrite(
        d / "model.safetensors", lambda a: a.pop("model.layers.0.mlp.up_proj.weight")
    ),
    "is an adapter": lambda d: (d / "adapter_config.json").write_text("{}"),
    "attention_bias True": lambda d: edit(d / "config.json", attention_bias=True),
    "hidden_act gelu": lambda d: edit(d / "config.json", hidden_act="gelu"),
    "rope_type yarn": lambda d: edit(d / "config.json", rope_parameters={"rope_type": "yarn", "rope_theta": 1.0}),
    "rope_theta 0.0": lambda d: edit(d / "config.json", rope_parameters={"rope_theta": 0}),
    "quantization_config": lambda d: edit(d / "config.json", quantization_config={"bits": 4}),
    "config.json lacks num_hidden_layers": lambda d: edit(d / "config.json", num_hidden_layers=None),
    "config.json is damaged": lambda d: (d / "config.json").write_text("{"),
    "lacks .*model.layers.3.input_layernorm": lambda d: edit(d / "config.json", num_hidden_layers=4),
    r"model.layers.2.* \(8 tensors\) that config.json lacks": lambda d: edit(d / "config.json", num_hidden_layers=2),
    r"shape \(704, 48\), config.json says \(704, 40\)": lambda d: edit(d / "config.json", hidden_size=40),
    r"shape \(16, 48\), config.json says \(32, 48\)": lambda d: edit(d / "config.json", num_key_value_heads=2),
    "k_proj.weight is I32": lambda d: rewrite(
        d / "model.safetensors", lambda a: a.update({KEY: a[KEY].astype(np.int32)})
    ),
    "is F16, other layers are F32": lambda d: rewrite(
        d / "model.safetensors", lambda a: a.update({KEY: a[KEY].astype(np.float16)})
    ),
    "lm_head.weight differs": lambda d: rewrite(
        d / "model.safetensors", lambda a: a.update({"lm_head.weight": a[EMBED] + 1})
    ),
    "damaged or truncated": lambda d: (d / "model.safetensors").write_bytes(
        (d / "model.safetensors").read_bytes()[:-1000]
    ),
    "no model.safetensors": lambda d: (d / "model.safetensors").unlink(),
    r"points to '../model.safetensors'": lambda d: (d / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {EMBED: "../model.safetensors"}})
    ),
    "names other.safetensors, which is not there": lambda d: (d / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {EMBED: "other.safetensors"}})
    ),
    "expected a weight_map": lambda d: (d / "model.safetensors.index.json").write_text("{}"),
    "no .*tokenizer.json": lambda d: (d / "tokenizer.json").unlink(),
    "tokenizer.json: not a tokenizer.json with": lambda d: (d / "tokenizer.json").write_text("[" * 100_000),
    "tokenizer.json: not a tokenizer.json": lambda d: (d / "tokenizer.json").write_text("{}"),
    "705 subwords, the model 704 embeddings": lambda d: edit(d / "tokenizer.json", **with_more_tokens(d)),
    "config.json has eos_token_id 'x', expected an id": lambda d: edit(d / "config.json", eos_token_id="x"),
    r"ids \[9999\] are not in the vocabulary": lambda d: edit(d / "config.json", eos_token_id=9999),
    "neither a BOS nor an EOS": lambda d: edit(d / "config.json", bos_token_id=None, eos_token_id=None),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_bad_checkpoints_are_named_and_leave_nothing(good, tmp_path, message):
    shutil.copytree(good, tmp_path / "hf")
    DAMAGE[message](tmp_path / "hf")
    with pytest.raises(ValueError, match=message):
        import_hf(tmp_path / "hf", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_destinations_that_exist_are_left_alone(good, tmp_path):
    (tmp_path / "ours").mkdir()
    with pytest.raises(ValueError, match="exists: choose another place"):
        import_hf(good, tmp_path / "ours")
    assert not list((tmp_path / "ours").iterdir())
    with pytest.raises(ValueError, match="no folder nowhere"):
        import_hf("nowhere", tmp_path / "other")


def test_crashes_while_writing_leave_nothing(good, tmp_path):
    def fails(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_hf(good, tmp_path / "ours", progress=fails)
    assert not list(tmp_path.iterdir())


def test_stored_tied_heads_and_rotary_buffers_are_left_out(good, tmp_path):
    shutil.copytree(good, tmp_path / "hf")
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(
        tmp_path / "hf" / "model.safetensors",
        lambda a: a.update({"lm_head.weight": a[EMBED].copy(), buffer: np.ones(8, np.float32)}),
    )
    assert import_hf(tmp_path / "hf", tmp_path / "ours").ignored == ["lm_head.weight", buffer]


_MEASURE = """
import sys
from pathlib import Path
from upalm.interop import import_hf

def now(what):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(what)) << 10

small, large, out = map(Path, sys.argv[1:])
import_hf(small, out / "made-small")  # all code is loaded
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = now("VmRSS:")
import_hf(large, out / "made-large")
print(now("VmHWM:") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
def test_imports_hold_little_more_than_their_largest_file(good, tmp_path, source_text):
    large = small_cohere(hidden_size=512, intermediate_size=2048, num_hidden_layers=26, head_dim=64)
    save(large, tmp_path / "large", source_text, shard="96MB")  # large beside what the allocator adds
    files = [p.stat().st_size for p in (tmp_path / "large").glob("*.safetensors")]
    assert len(files) >= 4
    command = [sys.executable, "-c", _MEASURE, good, tmp_path / "large", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 1.3 * max(files), (int(done.stdout), files)


def test_checkpoints_of_upalm_need_no_import(tmp_path):
    with pytest.raises(ValueError, match="is a checkpoint of upalm, which every command opens as it is"):
        import_hf(PALM_TINY, tmp_path / "x")
    assert not (tmp_path / "x").exists()
