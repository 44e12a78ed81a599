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


def point(path: Path) -> None:
    """Leave of a file what `git clone` leaves without Git LFS."""
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 1000\n")


def replace_by_index(folder: Path, weight_map: dict | None) -> None:
    """Put an index in place of the weights."""
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


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
    "no model.safetensors .* become them when transformers": lambda d: (d / "model.safetensors").rename(
        d / "pytorch_model.bin"
    ),
    "model.safetensors is a pointer of Git LFS.*`git lfs pull`": lambda d: point(d / "model.safetensors"),
    r"points to '../model.safetensors'": lambda d: replace_by_index(d, {EMBED: "../model.safetensors"}),
    "names other.safetensors, which is not there": lambda d: replace_by_index(d, {EMBED: "other.safetensors"}),
    "expected a weight_map": lambda d: replace_by_index(d, None),
    "no .*tokenizer.json.* becomes it when transformers": lambda d: (d / "tokenizer.json").rename(
        d / "tokenizer.model"
    ),
    "tokenizer.json is a pointer of Git LFS": lambda d: point(d / "tokenizer.json"),
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


@pytest.mark.parametrize("source", ["nowhere", "./nowhere", "../nowhere", "a/b/c"])
def test_sources_that_are_neither_folders_nor_names_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match=f"no folder {source}; a name on the Hugging Face hub is OWNER/NAME"):
        import_hf(source, tmp_path / "ours")


def test_an_index_beside_a_whole_file_is_passed_over(good, tmp_path):
    """A checkpoint that was sharded before keeps its index: transformers looks for the whole file first."""
    shutil.copytree(good, tmp_path / "hf")
    stale = {"weight_map": {EMBED: "model-00001-of-00002.safetensors"}}
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(stale))
    shutil.copyfile(tmp_path / "hf" / "model.safetensors", tmp_path / "hf" / "model-00001-of-00002.safetensors")
    rewrite(tmp_path / "hf" / "model-00001-of-00002.safetensors", lambda a: a.update({EMBED: a[EMBED] + 1}))
    import_hf(tmp_path / "hf", tmp_path / "ours")
    stored = safetensors.numpy.load_file(tmp_path / "ours" / "model.safetensors")["embed"]
    assert np.array_equal(stored, safetensors.numpy.load_file(good / "model.safetensors")[EMBED])


# --- The hub ---


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for the client: a folder of repositories, and the names of the files that were fetched."""
    client = pytest.importorskip("huggingface_hub", reason="needs pip install 'upalm[hf]'")
    fetched = []

    def snapshot_download(name, *, revision, allow_patterns, ignore_patterns):
        client.utils.validate_repo_id(name)
        repository, copy = tmp_path / "hub" / name, tmp_path / "cache" / "commit"
        if not repository.is_dir():
            try:
                raise RuntimeError("403 Forbidden from the proxy")
            except RuntimeError as e:
                kind = client.errors.XetDownloadError if name.endswith("half") else client.errors.HTTPError
                raise kind("cannot reach\n\nthe hub") from e
        assert revision in (None, "commit")
        copy.mkdir(parents=True, exist_ok=True)
        names = [p.relative_to(repository).as_posix() for p in repository.rglob("*") if p.is_file()]
        wanted = client.utils.filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        for file in wanted:
            shutil.copyfile(repository / file, copy / file)
            fetched.append(file)
        return str(copy)

    monkeypatch.setattr(client, "snapshot_download", snapshot_download)
    return tmp_path / "hub", fetched


def test_weights_are_fetched_last_and_only_those_needed(hub, tmp_path, source_text):
    folder, fetched = hub
    source = save(small_cohere(), folder / "owner" / "model", source_text, shard="60KB")
    for name in ("onnx/config.json", "consolidated.safetensors", "onnx/model.safetensors"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}")
    import_hf("owner/model", tmp_path / "ours")
    shards = {path.name for path in source.glob("model-*.safetensors")}
    assert len(shards) > 1 and set(fetched[-len(shards) :]) == shards
    assert not [name for name in fetched if "onnx" in name or "consolidated" in name]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_refusals_come_before_weights_are_fetched(hub, good, tmp_path, name):
    folder, fetched = hub
    source = shutil.copytree(good, folder / "owner" / "model")
    (source / name).write_text("{}")
    with pytest.raises(ValueError, match="architecture None|not a tokenizer.json"):
        import_hf("owner/model", tmp_path / "ours")
    assert fetched and "model.safetensors" not in fetched
    fetched.clear()
    (tmp_path / "ours").mkdir()
    with pytest.raises(ValueError, match="exists: choose another place"):
        import_hf("owner/model", tmp_path / "ours")
    assert not fetched


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owner/absent", "did not give it: cannot reach the hub; 403 Forbidden from the proxy"),
        ("owner/half", "did not give it: cannot reach the hub; 403 Forbidden from the proxy"),
        ("owner/a--b", "did not give it: Cannot have -- or .."),
    ],
)
def test_whatever_the_hub_raises_is_one_error_with_its_cause(hub, tmp_path, name, message):
    with pytest.raises(ValueError, match=f"no folder {name}, and the hub {message}") as error:
        import_hf(name, tmp_path / "ours")
    assert type(error.value) is ValueError


# --- Writing ---


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
