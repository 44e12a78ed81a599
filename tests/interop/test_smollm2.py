"""SmolLM2-135M, a real checkpoint: the same function as in transformers, UL2R of it, and back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.cohere import logits, oracle
from support.environment import AS_USERS_HAVE
from support.open_checkpoints import stored_tensors

from upalm.inference.config import GenerationConfig
from upalm.inference.decoding import Task, decode
from upalm.inference.grammar import Rules
from upalm.inference.language_model import load
from upalm.interop.hf_export import export_hf
from upalm.interop.hf_import import import_hf
from upalm.model.attention import key_range
from upalm.ul2r.rows import Batch
from upalm.ul2r.symbols import Symbols

SOURCE = Path(os.environ.get("UPALM_TEST_SMOLLM2", "absent"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SOURCE / "config.json").is_file(),
        reason="UPALM_TEST_SMOLLM2 names no folder with SmolLM2-135M (docs/open_checkpoints.md says how to get it)",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _optimised_programs():
    """A real model would take hours otherwise."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The import."""
    return import_hf(SOURCE, tmp_path_factory.mktemp("smollm2") / "base").folder


def oracle_model(folder):
    """The model of transformers, in fp32."""
    return oracle("transformers").AutoModelForCausalLM.from_pretrained(folder).float().eval()


def greedy_tokens(model, ids: list[int], n: int) -> list[int]:
    """Tokens that transformers generates."""
    import torch

    prompt = torch.tensor([ids])
    settings = dict(attention_mask=torch.ones_like(prompt), do_sample=False, eos_token_id=None, pad_token_id=0)
    return model.generate(prompt, max_new_tokens=n, **settings)[0, len(ids) :].tolist()


def our_greedy_tokens(model, ids: list[int], n: int, vocab_size: int) -> list[int]:
    """Tokens that the cached decoder generates, after the same prompt, BOS first."""
    endless = Symbols((), {}, eos_id=vocab_size + 1, bos_id=ids[0], never_generated=())
    [[answer]] = decode(model, [Task(ids[1:], n)], GenerationConfig(attention="causal"), Rules(endless))
    return answer.tokens.tolist()


def upalm(*words) -> None:
    """Run a command with the optimised programs that users have."""
    command = [sys.executable, "-m", "upalm", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | AS_USERS_HAVE)
    assert done.returncode == 0, done.stderr[-2000:]


def test_logits_and_greedy_tokens_equal_those_of_transformers(base, source_text):
    model, ours = oracle_model(SOURCE), load(base)
    ids = [1, *ours.tokenizer.encode(source_text)[:255]]
    assert oracle("transformers").AutoTokenizer.from_pretrained(SOURCE)(source_text).input_ids[:255] == ids[1:]
    batch = Batch.empty(1, 256)
    batch.input_tokens[:], batch.segment_ids[:], batch.positions[:] = ids, 1, np.arange(256)
    expected = logits(model, batch.input_tokens).detach().numpy()
    np.testing.assert_allclose(ours.model(batch), expected, rtol=0, atol=3e-4)
    batch.segment_ids[:], batch.positions[:] = np.arange(256) // 128 + 1, np.arange(256) % 128
    batch.prefix_mask[:] = batch.positions < 64
    mask = np.asarray(key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask)).mask(256))
    expected = logits(model, batch.input_tokens, mask, batch.positions).detach().numpy()
    np.testing.assert_allclose(ours.model(batch), expected, rtol=0, atol=3e-4)
    prompt = ids[:24]
    assert our_greedy_tokens(ours.model, prompt, 256, 49152) == greedy_tokens(model, prompt, 256)


def test_imports_go_out_byte_for_byte(base, tmp_path):
    exported = export_hf(base, tmp_path / "back").folder
    assert stored_tensors(exported) == stored_tensors(SOURCE)
    for path in SOURCE.glob("*.json*"):
        assert (exported / path.name).read_bytes() == path.read_bytes()


def test_ul2r_infilling_and_export_of_a_real_model(base, tmp_path, source_text):
    text, data, run = tmp_path / "text.txt", tmp_path / "data", tmp_path / "run"
    text.write_text(source_text)
    upalm("data", "build", text, "--out", data, "--tokenizer", base)
    shape = ("--n-steps", 20, "--data.batch-size", 4, "--log-every", 1)
    upalm("run", "ul2r_smollm2", "cpu", "--start.checkpoint", base, "--data.source", data, "--out", run, *shape)
    losses = [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert len(losses) == 20 and np.isfinite(losses).all()  # too few steps for a fall that noise does not hide
    ours = load(run)
    filled = ours.infill("import os\nimport <extra_id_0>\nimport sys\n", GenerationConfig(max_new_tokens=16))
    assert filled.text == f"import os\nimport {filled.spans[0]}\nimport sys\n"
    exported = export_hf(run, tmp_path / "back").folder
    ids = [1, *ours.tokenizer.encode("def add(a, b):\n")]
    expected = greedy_tokens(oracle_model(exported), ids, 32)
    assert our_greedy_tokens(ours.model, ids, 32, 49152) == expected
