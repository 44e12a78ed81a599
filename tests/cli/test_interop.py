"""The researcher's path, whole and from the command line: an open checkpoint, their text, UL2R, evals, an export."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from support.cohere import logits, oracle, save, small_cohere

from upalm.checkpoints.config_json import description
from upalm.checkpoints.folder import load_model
from upalm.ul2r.rows import Batch


def upalm(*words) -> str:
    command = [sys.executable, "-m", "upalm", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_import_build_ul2r_eval_export(tmp_path, source_text, monkeypatch):
    transformers = oracle("transformers")
    theirs = small_cohere(num_key_value_heads=2, initializer_range=0.05)
    hf, base, data, run, back = (tmp_path / name for name in ("hf", "base", "data", "run", "back"))
    texts = tmp_path / "texts.jsonl"
    pieces = [source_text[at : at + 3000] for at in range(0, len(source_text) - 3000, 1000)]
    texts.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))

    said = upalm("import-hf", save(theirs, hf, source_text), "--out", base)
    assert "rows of up to 256 tokens: the positions it was trained for" in said
    assert "sentinels: the last 100 subwords of the vocabulary, ids 699 down to 600" in said
    assert json.loads((base / "symbols.json").read_text())["sentinels_are"] in said
    upalm("data", "build", texts, "--out", data, "--tokenizer", base)
    sizes = ("--n-steps", 100, "--batch-size", 8, "--seq-len", 128, "--peak", 0.1)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    upalm("run", "ul2r", "paper", "--checkpoint", base, "--data", data, "--out", run, *sizes)
    programs = set((tmp_path / "upalm" / "jax").glob("jit_*"))  # kept for the next start
    assert [p for p in programs if p.name.startswith("jit_train_step-")]
    found = {}
    for checkpoint in (base, run):
        few = ("--n-rows", 48, "--n-decoded", 4, "--json", tmp_path / "eval.json")
        upalm("eval", "--checkpoint", checkpoint, "--data", texts, *few)
        found[checkpoint] = json.loads((tmp_path / "eval.json").read_text())["infill_bits_per_byte"]
    assert found[run]["high"] < found[base]["low"]
    assert programs < set((tmp_path / "upalm" / "jax").glob("jit_*"))

    said = upalm("export-hf", "-c", run, "--out", back)
    assert "float32, as CohereForCausalLM" in said
    opened = transformers.AutoModelForCausalLM.from_pretrained(back)
    ours = load_model(run).model
    ids = np.random.default_rng(0).integers(3, 600, (1, 64)).astype(np.int32)
    batch = Batch.empty(1, 64)._replace(input_tokens=ids, segment_ids=np.ones((1, 64), np.int16))
    batch = batch._replace(positions=np.arange(64, dtype=np.int16)[None])
    np.testing.assert_allclose(logits(opened, ids).detach().numpy(), np.asarray(ours(batch)), atol=1e-4)
    [manifest] = description(run)["data_manifests"].values()
    card = (back / "README.md").read_text()
    assert manifest in card and "| mixture of denoisers | ul2r |" in card
