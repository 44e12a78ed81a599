"""Exports: transformers opens them, says what `upalm sample` says, and what cannot go out is refused."""

import json
import shutil
from dataclasses import replace
from functools import partial

import equinox as eqx
import jax
import numpy as np
import pytest
from support.cohere import edit, logits, oracle, save, small_cohere
from support.runs import MODEL, tiny_config

from upalm.checkpoints.folder import export, load_model, open_checkpoint
from upalm.checkpoints.lineage import CheckpointInfo
from upalm.checkpoints.shipped import PALM_TINY
from upalm.data.hf_tokenizer import load_tokenizer
from upalm.data.tokenizer import AWKWARD_TEXTS
from upalm.inference.config import GenerationConfig
from upalm.inference.language_model import LanguageModel
from upalm.interop.hf_export import SOURCE_CONFIG, export_hf
from upalm.interop.hf_import import import_hf
from upalm.interop.palm_rlhf import import_palm
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder
from upalm.training.config import Scratch
from upalm.training.launch import run
from upalm.ul2r.rows import Batch
from upalm.ul2r.symbols import UNK_ID

SHAPE = dict(vocab_size=512, d_model=32, n_layers=2, n_heads=2, d_head=16, d_ff=64, seq_len=64)


def own_model(folder, tokenizer, **options):
    """A checkpoint with random weights that are peaked enough to have no ties."""
    model = Decoder(ModelConfig(**SHAPE, **options), key=jax.random.key(0))
    scales = 0.3 * jax.random.normal(jax.random.key(1), model.blocks.norm.shape)
    model = eqx.tree_at(lambda m: (m.blocks.norm, m.embed), model, (scales, model.embed * 3))
    return export(folder, model, tokenizer, {"n_steps": 3, "data": {"mixture": "ul2r", "source": "stdlib"}})


@pytest.fixture(scope="module")
def layernorm(tmp_path_factory, tokenizer):
    """A checkpoint of PaLM's block with LayerNorm, and its export."""
    folder = tmp_path_factory.mktemp("layernorm")
    own_model(folder / "ours", tokenizer, norm="layernorm")
    return folder / "ours", export_hf(folder / "ours", folder / "hf", dtype="float32").folder


def test_damaged_weights_are_not_exported(tmp_path, tokenizer):
    own_model(tmp_path / "ours", tokenizer, norm="layernorm")
    weights = tmp_path / "ours" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its checksum"):
        export_hf(tmp_path / "ours", tmp_path / "hf")


@pytest.mark.parametrize("family", ["parallel", "sequential"])
def test_plain_generate_equals_causal_sample(family, layernorm, tmp_path, tokenizer):
    """Only text goes in: BOS is the export's own affair."""
    transformers = oracle("transformers")
    folder, exported = layernorm
    if family == "sequential":
        own_model(tmp_path / "ours", tokenizer, block="sequential", logit_scale=1.0, norm_offset=0.0)
        folder, exported = tmp_path / "ours", export_hf(tmp_path / "ours", tmp_path / "hf", dtype="float32").folder
    opened = transformers.AutoModelForCausalLM.from_pretrained(exported)
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    ours = LanguageModel(*load_model(folder))
    prompts = ["import os", "def f(x):\n    ", "caf\u00e9  12"]
    for prompt in prompts:
        ids = theirs(prompt, return_tensors="pt")
        assert ids["input_ids"][0].tolist() == [0, *ours.tokenizer.encode(prompt)]
        new = opened.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :].tolist()
        config = GenerationConfig(mode="none", attention="causal", max_new_tokens=12)
        assert theirs.decode(new, skip_special_tokens=True) == ours.generate(prompt, config).text
    padded = theirs(prompts, padding=True, return_tensors="pt", padding_side="left")
    alone = [opened(**theirs(text, return_tensors="pt")).logits[0, -1] for text in prompts]
    together = opened(**padded).logits[:, -1]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), atol=1e-4)


def test_own_exports_pad_with_a_token_that_no_text_has(layernorm):
    transformers = oracle("transformers")
    _, exported = layernorm
    config, generation = (json.loads((exported / f"{n}.json").read_text()) for n in ("config", "generation_config"))
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, 1, UNK_ID)
    assert {name: config[name] for name in generation} == generation
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (UNK_ID, 0, 1)
    batch = theirs(["a", "a longer text"], padding=True)
    assert batch["attention_mask"][0].count(0) > 0


def test_generate_without_a_mask_sees_bos(layernorm):
    """Padding with BOS would hide it from `generate`, which infers the mask."""
    transformers, torch = oracle("transformers"), oracle("torch")
    _, exported = layernorm
    opened = transformers.AutoModelForCausalLM.from_pretrained(exported)
    ids = torch.tensor([[0, 300, 301, 302]])
    config = dict(max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True)
    without, with_mask = opened.generate(ids, **config), opened.generate(ids, attention_mask=ids >= 0, **config)
    assert torch.equal(without.logits[0], with_mask.logits[0])


def test_shipped_model_exports_or_names_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="no architecture .* --start.model"):
        export_hf(PALM_TINY, tmp_path / "hf")
    assert not list(tmp_path.iterdir())


def test_exported_tokenizers_give_the_ids_of_their_origin(layernorm, tokenizer, source_text):
    transformers = oracle("transformers")
    _, exported = layernorm
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    texts = [*source_text.split("\n\n"), "caf\u00e9 123 \t\n  x"]
    n_ties = 0
    for text in texts:
        ids, expected = theirs(text, add_special_tokens=False)["input_ids"], tokenizer.encode(text)
        if ids != expected:  # two ways to cut it that are equally likely: the libraries take either
            scores = [sum(tokenizer.processor.get_score(i) for i in some) for some in (ids, expected)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-4) and theirs.decode(ids) == text
            n_ties += 1
    assert n_ties < len(texts) / 5
    assert theirs.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_99>"]) == [511, 412]


def test_texts_that_look_like_bytes_come_back(layernorm, tokenizer):
    """`<0x41>` in a text comes back, though it is the piece of the byte 0x41 in a vocabulary with byte fallback."""
    transformers = oracle("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(layernorm[1])
    for text in (f"x<0x{byte:02X}>y" for byte in range(256)):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert theirs.decode(ids) == text == tokenizer.decode(ids)


def test_exported_tokenizers_give_awkward_texts_back(layernorm):
    """U+2581 too, which SentencePiece writes for a space."""
    theirs = oracle("transformers").AutoTokenizer.from_pretrained(layernorm[1])
    for text in AWKWARD_TEXTS:
        assert theirs.decode(theirs(text, add_special_tokens=False)["input_ids"]) == text


def test_weights_of_an_export_are_readable_by_others(layernorm):
    """A server often runs as another user."""
    assert (layernorm[1] / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_model_cards_tell_training_and_use(layernorm):
    card = (layernorm[1] / "README.md").read_text()
    assert "| mixture of denoisers | ul2r |" in card and "2210.11399" in card and "ids 511, 510, ... 412" in card


def test_model_cards_tell_the_steps_that_were_made(tmp_path, source_text):
    (tmp_path / "text.txt").write_text(source_text)
    config = tiny_config(tmp_path / "run", str(tmp_path / "text.txt"), n_steps=6)
    folder = run(replace(config, start=Scratch(replace(MODEL, norm="layernorm"))))
    edit(folder / "config.json", run=json.loads((folder / "config.json").read_text())["run"] | {"n_steps": 6000})
    for place, steps in ((folder, 6), (folder / "steps" / "3", 3)):
        exported = export_hf(place, tmp_path / f"hf-{steps}").folder
        assert f"| steps | {steps} |\n" in (exported / "README.md").read_text()


@pytest.mark.parametrize("kind", ["SentencePiece", "tokenizer.json"])
@pytest.mark.parametrize(("inputs_eos", "gaps_trained"), [(True, True), (False, True), (False, None)])
def test_prompt_format_comes_back_from_an_export(tmp_path, tokenizer, source_text, kind, inputs_eos, gaps_trained):
    """Without it prompts of the import would differ from those that the model was trained on."""
    ours = tmp_path / "ours"
    if kind == "SentencePiece":
        own_model(ours, tokenizer, norm="layernorm")
        (ours / "manifest.json").unlink()
    else:
        import_hf(save(small_cohere(), tmp_path / "hf", source_text), ours)
    stored = json.loads((ours / "config.json").read_text())
    stored |= {"inputs_eos": inputs_eos, "gaps_trained": gaps_trained}
    (ours / "config.json").write_text(json.dumps(stored))
    import_hf(export_hf(ours, tmp_path / "back").folder, tmp_path / "again")
    *_, info = open_checkpoint(tmp_path / "again")
    assert info == CheckpointInfo(inputs_eos=inputs_eos, gaps_trained=gaps_trained)


def test_damaged_prompt_formats_are_refused(layernorm, tmp_path):
    folder = shutil.copytree(layernorm[1], tmp_path / "hf")
    (folder / "upalm.json").write_text('{"inputs_eos": 1, "gaps_trained": true}')
    with pytest.raises(ValueError, match="upalm.json is damaged: expected inputs_eos true or false"):
        import_hf(folder, tmp_path / "again")


def test_licence_of_the_source_survives_line_ends_of_windows(tmp_path, source_text):
    source = save(small_cohere(), tmp_path / "hf", source_text)
    (source / "README.md").write_bytes(b"---\r\nlicense: mit\r\n---\r\n# A model\r\n")
    import_hf(source, tmp_path / "ours")
    assert "\nlicense: mit\n" in (export_hf(tmp_path / "ours", tmp_path / "back").folder / "README.md").read_text()


def test_places_that_cannot_be_written_are_refused_first(tmp_path):
    """Before anything of the checkpoint is read, of which there is none here."""
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    for place, message in (("dangling", "dangling exists"), ("file/hf", "file is a file, expected a folder: choose")):
        for convert in (export_hf, import_hf, partial(import_palm, tokenizer=tmp_path)):
            with pytest.raises(ValueError, match=message):
                convert(tmp_path / "absent", tmp_path / place)


def test_logits_of_own_layernorm_models_equal_those_of_transformers(layernorm):
    transformers = oracle("transformers")
    folder, exported = layernorm
    opened = transformers.AutoModelForCausalLM.from_pretrained(exported)
    ids = np.random.default_rng(0).integers(3, 400, (1, 40)).astype(np.int32)
    batch = Batch.empty(1, 40)
    batch.input_tokens[:], batch.segment_ids[:], batch.positions[:] = ids, 1, np.arange(40)
    np.testing.assert_allclose(logits(opened, ids).detach().numpy(), load_model(folder).model(batch), atol=1e-5)


@pytest.mark.parametrize("damage", [b"{", b"[]", b"[" * 100_000, b"\xff"])
def test_damaged_config_of_the_source_is_named(tmp_path, source_text, damage):
    """A config.json in the folder of the import decides how the model goes out."""
    import_hf(save(small_cohere(), tmp_path / "hf", source_text), tmp_path / "ours")
    (tmp_path / "ours" / SOURCE_CONFIG).write_bytes(damage)
    with pytest.raises(ValueError, match=f"ours/{SOURCE_CONFIG} is damaged"):
        export_hf(tmp_path / "ours", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_imports_and_their_exports_cut_text_alike(tmp_path, source_text):
    transformers = oracle("transformers")
    import_hf(save(small_cohere(), tmp_path / "hf", source_text), tmp_path / "ours")
    exported = export_hf(tmp_path / "ours", tmp_path / "back").folder
    tokenizer, ours = transformers.AutoTokenizer.from_pretrained(exported), load_tokenizer(tmp_path / "ours")
    n_same = 0
    for text in [*source_text.split("\n"), "\u00e9t\u00e9 12\n\n  \tx"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ours.is_sentinel(ids).any():  # a subword that is a sentinel now: ours spells it in bytes
            assert ours.decode(ours.encode(text)) == text and not ours.is_sentinel(ours.encode(text)).any()
        else:
            assert ids == ours.encode(text)
            n_same += 1
    assert n_same > 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "rms"}, "--start.model.norm layernorm"),
        ({"norm": "layernorm", "xpos_scale_base": 512}, "xpos-scale-base 0"),
        ({"norm": "layernorm", "qk_norm": "l2"}, "qk-norm none"),
    ],
)
def test_models_without_a_counterpart_name_the_option_to_change(tmp_path, tokenizer, change, message):
    own_model(tmp_path / "ours", tokenizer, **change)
    with pytest.raises(ValueError, match=message):
        export_hf(tmp_path / "ours", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_numbers_beyond_float16_are_not_exported_as_infinity(tmp_path, tokenizer):
    model = Decoder(ModelConfig(**SHAPE, norm="layernorm"), key=jax.random.key(0))
    export(tmp_path / "ours", jax.tree.map(lambda x: x + 1e5, model), tokenizer, {})
    with pytest.raises(ValueError, match="beyond float16"):
        export_hf(tmp_path / "ours", tmp_path / "hf", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
