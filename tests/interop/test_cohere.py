"""Open checkpoints in and out, with transformers as the oracle."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from support.cohere import ROWS, VOCAB, edit, logits, oracle, save, small_cohere

from upalm import ul2r
from upalm.checkpoints.arrays import to_arrays
from upalm.checkpoints.folder import export, load_model
from upalm.data.hf_tokenizer import load_tokenizer
from upalm.inference.config import GenerationConfig
from upalm.inference.decoding import Task, decode
from upalm.inference.grammar import Rules
from upalm.interop import cohere, hf_export, hf_import
from upalm.interop import files as files_module
from upalm.model.attention import key_range
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder
from upalm.training.loss import loss_fn, token_log_probs
from upalm.ul2r.rows import Batch

SHAPES = {
    "one KV head": {},
    "two KV heads": {"num_key_value_heads": 2},
    "all KV heads": {"num_key_value_heads": 4},
    "query-key norm": {"num_key_value_heads": 2, "use_qk_norm": True},
    "width is heads x head": {"head_dim": 12},
    "own output embeddings": {"tie_word_embeddings": False},
}


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def pair(request, tmp_path_factory, source_text):
    """A transformers model, and ours imported from what it saved."""
    folder = tmp_path_factory.mktemp("pair")
    theirs = small_cohere(**SHAPES[request.param])
    hf_import.import_hf(save(theirs, folder / "hf", source_text), folder / "ours")
    return theirs, load_model(folder / "ours")[0]


@pytest.fixture(scope="module")
def packed():
    """Two rows of packed segments with prefixes of several lengths, and padding."""
    rng, batch = np.random.default_rng(0), Batch.empty(2, 48)
    for b, lengths in enumerate(([(5, 9), (12, 6)], [(20, 20)])):
        at = 0
        for i, (n_inputs, n_targets) in enumerate(lengths):
            ids = rng.integers(3, VOCAB, n_inputs + n_targets)
            example = ul2r.Example(ids[:n_inputs], ids[n_inputs:])
            at = ul2r.write_segment(batch.row(b), at, example, i + 1, 0, 1)
    return batch


def mask_of(batch):
    return np.asarray(key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask)).mask(48))


# --- The same function ---


@pytest.mark.parametrize("attention", ["prefix", "causal"])
def test_logits_of_packed_rows_are_those_of_transformers(pair, packed, attention):
    theirs, ours = pair
    batch = packed if attention == "prefix" else packed.causal()
    expected = logits(theirs, batch.input_tokens, mask_of(batch), batch.positions).detach().numpy()
    real = batch.segment_ids > 0
    np.testing.assert_allclose(np.asarray(ours(batch))[real], expected[real], atol=2e-5)


def test_plain_rows_are_transformers_own_causal_mask(pair):
    theirs, ours = pair
    ids = np.random.default_rng(1).integers(3, VOCAB, (2, 48)).astype(np.int32)
    batch = Batch.empty(2, 48)._replace(input_tokens=ids, segment_ids=np.ones((2, 48), np.int16))
    batch = batch._replace(positions=np.tile(np.arange(48, dtype=np.int16), (2, 1)))
    np.testing.assert_allclose(np.asarray(ours(batch)), logits(theirs, ids).detach().numpy(), atol=2e-5)


def test_loss_and_the_gradient_of_every_parameter(pair, packed):
    import torch

    theirs, ours = pair
    targets, weights = torch.tensor(packed.target_tokens.astype(np.int64)), torch.tensor(packed.loss_weights)
    theirs.zero_grad()
    found = logits(theirs, packed.input_tokens, mask_of(packed), packed.positions)
    nll = torch.nn.functional.cross_entropy(found.flatten(0, 1), targets.flatten(), reduction="none")
    expected = (nll * weights.flatten()).sum()
    expected.backward()

    def ours_nll(model):
        return -jnp.sum(token_log_probs(model(packed), jnp.asarray(packed.target_tokens))[0] * packed.loss_weights)

    loss, gradient = jax.value_and_grad(ours_nll)(ours)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(loss_fn(ours, packed)[1].nll.sum()) == pytest.approx(float(expected), rel=1e-5)
    arrays, parameters = to_arrays(gradient), dict(theirs.named_parameters())
    names = cohere._names(ours.config)
    assert names.keys() == parameters.keys()
    for there, (name, layer) in names.items():
        array = np.asarray(arrays[name]) if layer < 0 else np.asarray(arrays[name][layer])
        wanted = parameters[there].grad.numpy()
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(cohere.to_hf_layout(name, array, ours.config) / scale, wanted / scale, atol=2e-5)


def test_greedy_generation_token_for_token(pair):
    import torch

    theirs, ours = pair
    prompt = np.random.default_rng(2).integers(3, VOCAB, 21)
    ids = torch.tensor([[1, *prompt]])
    expected = theirs.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    symbols = ul2r.Symbols((), {}, eos_id=ROWS + 1, bos_id=1, never_generated=())  # of an EOS that never comes
    [[found]] = decode(ours, [Task(prompt, 24)], GenerationConfig(attention="causal"), Rules(symbols))
    assert found.tokens.tolist() == expected[0, 22:].tolist()


def test_layernorm_folds_into_rms_norm_exactly(tmp_path, source_text, packed):
    theirs = small_cohere(num_key_value_heads=2, use_qk_norm=True)
    found = hf_import.import_hf(save(theirs, tmp_path / "hf", source_text), tmp_path / "rms", norm="rms")
    assert (found.config.norm, found.config.tied_head) == ("rms", False)
    expected = logits(theirs, packed.input_tokens, mask_of(packed), packed.positions).detach().numpy()
    real = packed.segment_ids > 0
    np.testing.assert_allclose(np.asarray(load_model(found.folder)[0](packed))[real], expected[real], atol=2e-5)


# --- In and out ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shard", ["50GB", "60KB"])
def test_import_then_export_is_the_identity(tmp_path, source_text, dtype, shard):
    theirs = small_cohere(num_key_value_heads=2, use_qk_norm=True)
    source = save(theirs, tmp_path / "hf", source_text, dtype, shard)
    assert len(list(source.glob("*.safetensors"))) > 1 or shard == "50GB"
    found = hf_import.import_hf(source, tmp_path / "ours")
    made = hf_export.export_hf(found.folder, tmp_path / "back", shard_bytes=60_000 if shard == "60KB" else 10**9)
    assert made.dtype == dtype
    before, after = (
        {k: v for path in folder.glob("*.safetensors") for k, v in safetensors.numpy.load_file(path).items()}
        for folder in (source, made.folder)
    )
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert (array.dtype, array.shape, array.tobytes()) == (
            after[name].dtype,
            after[name].shape,
            after[name].tobytes(),
        )
    assert (source / "tokenizer.json").read_bytes() == (made.folder / "tokenizer.json").read_bytes()
    again = hf_import.import_hf(made.folder, tmp_path / "again")
    assert again.config == found.config and again.tokenizer.symbols == found.tokenizer.symbols


def test_transformers_opens_an_export_without_code_of_ours(tmp_path, source_text, packed):
    transformers = oracle("transformers")
    theirs = small_cohere()
    hf_import.import_hf(save(theirs, tmp_path / "hf", source_text), tmp_path / "ours")
    made = hf_export.export_hf(tmp_path / "ours", tmp_path / "back").folder
    opened = transformers.AutoModelForCausalLM.from_pretrained(made)
    assert type(opened) is type(theirs)
    assert opened.generation_config.eos_token_id == 2
    ids = packed.input_tokens
    assert (logits(opened, ids) == logits(theirs, ids)).all()
    tokenizer, ours = transformers.AutoTokenizer.from_pretrained(made), load_tokenizer(tmp_path / "ours")
    n_same = 0
    for text in [*source_text.split("\n"), "été 12\n\n  \tx"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ours.is_sentinel(ids).any():  # a subword that is a sentinel now: ours spells it in bytes
            assert ours.decode(ours.encode(text)) == text and not ours.is_sentinel(ours.encode(text)).any()
        else:
            assert ids == ours.encode(text)
            n_same += 1
    assert n_same > 200


def test_a_model_of_our_own_with_layernorm_exports(tmp_path, tokenizer, source_text):
    """PaLM's zero-centred norms, no final scale, its logit scale, and a SentencePiece tokenizer."""
    transformers = oracle("transformers")
    shape = dict(vocab_size=512, d_model=32, n_layers=2, n_heads=2, d_head=16, d_ff=64, seq_len=64)
    model = Decoder(ModelConfig(**shape, norm="layernorm"), key=jax.random.key(0))
    scales = 0.3 * jax.random.normal(jax.random.key(1), model.blocks.norm.shape)
    model = eqx.tree_at(lambda m: m.blocks.norm, model, scales)
    export(tmp_path / "ours", model, tokenizer, {"n_steps": 3, "data": {"mixture": "ul2r", "source": "stdlib"}})
    made = hf_export.export_hf(tmp_path / "ours", tmp_path / "hf", dtype="float32").folder
    opened = transformers.AutoModelForCausalLM.from_pretrained(made)
    ids = np.random.default_rng(0).integers(3, 400, (1, 40)).astype(np.int32)
    batch = Batch.empty(1, 40)._replace(input_tokens=ids, segment_ids=np.ones((1, 40), np.int16))
    batch = batch._replace(positions=np.arange(40, dtype=np.int16)[None])
    ours = load_model(tmp_path / "ours").model
    np.testing.assert_allclose(logits(opened, ids).detach().numpy(), np.asarray(ours(batch)), atol=1e-5)
    theirs = transformers.AutoTokenizer.from_pretrained(made)
    plain = [t for t in source_text.split("\n\n") if max(tokenizer._sp.encode(t), default=0) < tokenizer.first_sentinel]
    assert len(plain) > 20
    for text in [*plain, "café 123 \t\n  x"]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    assert theirs.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_99>"]) == [511, 412]
    card = (made / "README.md").read_text()
    assert "| mixture of denoisers | ul2r |" in card and "2210.11399" in card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "rms"}, "--start.model.norm layernorm"),
        ({"norm": "layernorm", "xpos_scale_base": 512}, "xpos-scale-base 0"),
        ({"norm": "layernorm", "qk_norm": "l2"}, "qk-norm none"),
    ],
)
def test_what_has_no_counterpart_is_refused_with_the_option_that_avoids_it(tmp_path, tokenizer, change, message):
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=1, n_heads=2, d_head=16, d_ff=64, seq_len=64, **change)
    export(tmp_path / "ours", Decoder(config, key=jax.random.key(0)), tokenizer, {})
    with pytest.raises(ValueError, match=message):
        hf_export.export_hf(tmp_path / "ours", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_numbers_beyond_float16_are_not_exported_as_infinity(tmp_path, tokenizer):
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=1, n_heads=2, d_head=16, d_ff=64, norm="layernorm")
    model = Decoder(config, key=jax.random.key(0))
    export(tmp_path / "ours", jax.tree.map(lambda x: x + 1e5, model), tokenizer, {})
    with pytest.raises(ValueError, match="beyond float16"):
        hf_export.export_hf(tmp_path / "ours", tmp_path / "hf", dtype="float16")
    assert [p.name for p in tmp_path.iterdir()] == ["ours"]


# --- Bad input ---


def rewrite(path: Path, change) -> None:
    arrays = safetensors.numpy.load_file(path)
    change(arrays)
    safetensors.numpy.save_file(arrays, path)


EMBED, KEY = "model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight"
DAMAGE = {
    "LlamaForCausalLM: supported are CohereForCausalLM": lambda d: edit(
        d / "config.json", architectures=["LlamaForCausalLM"]
    ),
    "attention_bias True": lambda d: edit(d / "config.json", attention_bias=True),
    "hidden_act gelu": lambda d: edit(d / "config.json", hidden_act="gelu"),
    "rope_type yarn": lambda d: edit(d / "config.json", rope_parameters={"rope_type": "yarn", "rope_theta": 1.0}),
    "rope_theta 0.0": lambda d: edit(d / "config.json", rope_parameters=None),
    "quantization_config": lambda d: edit(d / "config.json", quantization_config={"bits": 4}),
    "lacks a setting.*num_hidden_layers": lambda d: edit(d / "config.json", num_hidden_layers=None),
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
    "tokenizer.json: not a tokenizer.json": lambda d: (d / "tokenizer.json").write_text("{}"),
    "700 subwords, the model 600 embeddings": lambda d: edit(d / "config.json", vocab_size=600),
    "neither a BOS nor an EOS": lambda d: edit(d / "config.json", bos_token_id=None, eos_token_id=None),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory, source_text):
    return save(small_cohere(), tmp_path_factory.mktemp("good") / "hf", source_text)


@pytest.mark.parametrize("message", DAMAGE)
def test_bad_checkpoints_are_named_and_leave_nothing(good, tmp_path, message):
    shutil.copytree(good, tmp_path / "hf")
    DAMAGE[message](tmp_path / "hf")
    with pytest.raises(ValueError, match=message):
        hf_import.import_hf(tmp_path / "hf", tmp_path / "ours")
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_a_destination_that_exists_is_left_alone(good, tmp_path):
    (tmp_path / "ours").mkdir()
    with pytest.raises(ValueError, match="exists: choose another place"):
        hf_import.import_hf(good, tmp_path / "ours")
    assert not list((tmp_path / "ours").iterdir())
    with pytest.raises(ValueError, match="no folder nowhere"):
        hf_import.import_hf("nowhere", tmp_path / "other")


def test_a_crash_while_writing_leaves_nothing(good, tmp_path):
    def fails(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hf_import.import_hf(good, tmp_path / "ours", progress=fails)
    assert not list(tmp_path.iterdir())


def test_stored_output_embeddings_and_rotary_buffers_are_no_surplus(good, tmp_path):
    shutil.copytree(good, tmp_path / "hf")
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(
        tmp_path / "hf" / "model.safetensors",
        lambda a: a.update({"lm_head.weight": a[EMBED].copy(), buffer: np.ones(8, np.float32)}),
    )
    found = hf_import.import_hf(tmp_path / "hf", tmp_path / "ours")
    assert found.ignored == ["lm_head.weight", buffer]


# --- Size ---

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
def test_an_import_holds_no_more_than_its_largest_file(good, tmp_path, source_text):
    large = small_cohere(hidden_size=512, intermediate_size=2048, num_hidden_layers=16, head_dim=64)
    save(large, tmp_path / "large", source_text, shard="48MB")
    files = [p.stat().st_size for p in (tmp_path / "large").glob("*.safetensors")]
    assert len(files) >= 4
    command = [sys.executable, "-c", _MEASURE, good, tmp_path / "large", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 1.3 * max(files), (int(done.stdout), files)


def test_the_writer_writes_what_the_library_reads(tmp_path):
    arrays = {"a": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "b": np.ones(3, np.float16)}
    writer = files_module.ArrayWriter(tmp_path / "x.safetensors", {k: (v.dtype, v.shape) for k, v in arrays.items()})
    writer.write("b", 0, arrays["b"])
    for i in (1, 0):
        writer.write("a", 12 * i, arrays["a"][i])
    writer.close()
    found = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert all((found[k] == v).all() and found[k].dtype == v.dtype for k, v in arrays.items())
    (size,) = struct.unpack("<Q", (tmp_path / "x.safetensors").read_bytes()[:8])
    assert size % 8 == 0
