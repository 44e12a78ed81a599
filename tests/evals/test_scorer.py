"""Scorer: prompts that fit, and answers that do not depend on batches."""

import json

import jax
import pytest

from upalm.evals.runner import evaluate
from upalm.evals.scorer import PromptFormat, Scorer
from upalm.evals.task import Generated, RowsTooShort, Source
from upalm.evals.tasks import english
from upalm.inference import decoding
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=4, d_head=8, d_ff=64, seq_len=256)
    return Decoder(config, key=jax.random.key(0))


def test_whole_exemplars_are_dropped_before_context_is_cut(model, tokenizer):
    scorer = Scorer(model, tokenizer, PromptFormat(mode="nlg", infill=True))
    symbols = tokenizer.symbols
    shots = [f"{letter} " * 60 for letter in "abc"]
    front, end = symbols.modes["nlg"], symbols.sentinels[:1]

    def text(prompt):
        assert prompt.ids[: len(front)] == front and prompt.ids[-1:] == end
        return tokenizer.decode(prompt.ids[len(front) : -1])

    prompt = scorer.build_prompt("p ", shots, "question", 10)
    assert (prompt.n_dropped, prompt.n_cut) == (2, 0)
    assert text(prompt) == "p " + shots[2] + "question"
    assert len(prompt.ids) + 1 + 10 <= 256
    long = scorer.build_prompt("p ", shots, "x " * 400, 10)
    assert long.n_dropped == 3 and long.n_cut > 0
    assert len(long.ids) == 256 - 1 - 10 and text(long).endswith("x x ")
    with pytest.raises(RowsTooShort, match="answers of 300 tokens leave no room"):
        scorer.build_prompt("", (), "question", 300)


def test_generated_answers_do_not_depend_on_batches(model, tokenizer, tmp_path):
    (tmp_path / "g.jsonl").write_text(
        "".join(json.dumps({"question": "word " * n, "answer": ["x"]}) + "\n" for n in (1, 4, 9, 20, 30, 2))
    )
    task = Generated("g", (Source("g.jsonl", english._from_open_question("answer"), shots=1),), max_new_tokens=6)
    loaded = task.load(tmp_path)
    programs = (decoding.prefill, decoding._first, decoding.advance)
    for form in (PromptFormat(), PromptFormat("causal", "s2s", infill=True)):
        texts = []
        for tokens in (4096, 32):
            path = tmp_path / f"{form.attention}{form.mode}{tokens}"
            evaluate(Scorer(model, tokenizer, form, tokens_per_batch=tokens), task, loaded, path)
            found = [json.loads(line) for line in path.read_text().split("\n")[1:] if line]
            texts.append({r["i"]: r["text"] for r in found})
        assert texts[0] == texts[1]
        n_compiled = [f._cache_size() for f in programs]
        evaluate(Scorer(model, tokenizer, form, tokens_per_batch=32), task, loaded, tmp_path / f"{form.mode}again")
        assert [f._cache_size() for f in programs] == n_compiled
        assert not any("<extra_id" in text or "\n" in text for text in texts[0].values())
