"""LanguageModel: the front door, opened from any folder."""

import inspect
import subprocess
import sys
import textwrap
import warnings

import jax
import numpy as np
import pytest

import upalm
from upalm.checkpoints.folder import export
from upalm.checkpoints.lineage import CheckpointInfo
from upalm.inference import generation, scoring
from upalm.inference.config import GenerationConfig
from upalm.inference.language_model import LanguageModel
from upalm.inference.prompts import prompt_ids, span_ids
from upalm.inference.sampling import Sampler
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder

CONFIG = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=4, d_head=8, d_ff=64, seq_len=256)
TEXT = "def f(a):\n    <extra_id_0>\n    <extra_id_1>\n"
FEW = GenerationConfig(max_new_tokens=5)


@pytest.fixture(scope="module")
def model(tokenizer):
    return LanguageModel(Decoder(CONFIG, key=jax.random.key(0)), tokenizer, CheckpointInfo(inputs_eos=True))


def test_a_folder_opens_with_its_history(tmp_path, model, tokenizer):
    export(tmp_path, model.model, tokenizer, {}, CheckpointInfo(inputs_eos=True, gaps_trained=True))
    opened = upalm.load(tmp_path)
    assert opened.tokenizer.hash == tokenizer.hash
    assert (opened.info.inputs_eos, opened.info.gaps_trained) == (True, True)


def test_without_a_folder_the_shipped_model_that_fills_gaps_opens():
    assert upalm.load().info == upalm.load_model(upalm.UPALM_TINY).info
    assert upalm.load().info.gaps_trained


def test_answers_of_the_shipped_model_end_by_themselves():
    """At many places: it learnt where an answer ends, and not only where a row does (docs/results.md)."""
    lines = inspect.getsource(textwrap).split("\n")
    at = [i for i in range(10, len(lines) - 4, 14) if lines[i].strip()]
    gaps = [("\n".join(lines[i - 6 : i]) + "\n", "\n" + "\n".join(lines[i + 1 : i + 4])) for i in at]
    free = GenerationConfig(max_new_tokens=40, constrained=False)
    assert len(gaps) > 20 and np.mean([x.format_ok for x in upalm.load().infill_batch(gaps, free)]) > 0.55


def test_prompts_end_as_the_model_was_trained(model, tokenizer):
    expected = generation.infill(model.model, tokenizer, TEXT, FEW, inputs_eos=True)
    assert model.infill(TEXT, FEW) == expected
    assert model.infill(TEXT, FEW).logprob != generation.infill(model.model, tokenizer, TEXT, FEW).logprob


def test_batches_answer_each_text_as_alone(model):
    prompts = ["import os", "x = <extra_id_0>"]
    assert model.infill_batch([TEXT, "a<extra_id_0>"], FEW)[0].spans == model.infill(TEXT, FEW).spans
    assert [c.text for c in model.generate_batch(prompts, FEW)] == [model.generate(p, FEW).text for p in prompts]


def test_samples_come_by_falling_likelihood(model):
    config = GenerationConfig(max_new_tokens=5, num_samples=4, sampler=Sampler(1.0))
    for best in (model.infill(TEXT, config), model.generate("import os", config)):
        log_probs = [best.logprob, *(x.logprob for x in best.alternatives)]
        assert len(log_probs) == 4 and log_probs == sorted(log_probs, reverse=True)
        assert all(x.alternatives == () for x in best.alternatives)


@pytest.mark.parametrize("text", [TEXT, "import os"])
def test_pieces_of_a_stream_are_the_answer(model, text):
    pieces = list(model.stream(text, FEW))
    answer = model.infill(text, FEW).spans if "<extra" in text else [model.generate(text, FEW).text]
    assert ["".join(p.text for p in pieces if p.gap == i) for i in range(len(answer))] == answer


def test_score_is_the_log_probability_of_ids(model, tokenizer):
    prompt, target = tokenizer.encode("import os"), tokenizer.encode(", sys")
    [expected] = scoring.score(model.model, [(prompt, target)])
    np.testing.assert_allclose(model.score("import os", ", sys").log_probs, expected.log_probs, rtol=1e-6)
    assert model.score("import os", ", sys").log_prob == pytest.approx(expected.log_probs.sum())
    [whole] = scoring.score(model.model, [([], prompt)])
    assert model.score("", "import os").log_prob == pytest.approx(whole.log_prob, rel=1e-5)
    [whole] = scoring.score(model.model, [(tokenizer.symbols.modes["s2s"], prompt)])
    assert model.score("", "import os", mode="s2s").log_prob == pytest.approx(whole.log_prob, rel=1e-5)


def test_score_of_spans_has_sentinels_and_eos(model, tokenizer):
    spans = ["x = 1", "return x"]
    prompt, target = prompt_ids(tokenizer, TEXT, "nlg", inputs_eos=True), span_ids(tokenizer, spans)
    [expected] = scoring.score(model.model, [(prompt, target)])
    np.testing.assert_allclose(model.score(TEXT, spans, mode="nlg").log_probs, expected.log_probs, rtol=1e-6)
    with pytest.raises(ValueError, match="1 spans for 2 gaps"):
        model.score(TEXT, ["x"])
    with pytest.raises(ValueError, match="the target is the text 'x' and its prompt has 2 gaps: expected a list"):
        model.score(TEXT, "x")


@pytest.mark.parametrize(("gaps_trained", "n_warnings"), [(None, 0), (True, 0), (False, 1)])
def test_a_model_that_never_saw_a_gap_warns(model, gaps_trained, n_warnings):
    model = LanguageModel(model.model, model.tokenizer, CheckpointInfo(gaps_trained=gaps_trained))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert model.infill("a<extra_id_0>b", GenerationConfig(max_new_tokens=2)).format_ok
    assert sum("never trained on gaps" in str(w.message) for w in caught) == n_warnings


_CALLS = """
import warnings
import upalm
model = upalm.load(upalm.PALM_TINY)
wrong = "<extra_id_7>"  # refused before anything is decoded
calls = [
    lambda: model.infill(wrong),
    lambda: model.infill_batch([wrong]),
    lambda: model.generate(wrong),
    lambda: model.generate_batch(["a", wrong]),
    lambda: model.stream(wrong),
    lambda: model.generate(""),
]
for call in calls:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except ValueError:
            pass
    print([(w.filename == __file__, w.lineno) for w in caught if "never trained on gaps" in str(w.message)])
"""


def test_the_warning_names_the_line_that_asked_for_gaps(tmp_path):
    """In a process without the checks of types, whose frames would lie between."""
    (tmp_path / "calls.py").write_text(_CALLS)
    done = subprocess.run([sys.executable, tmp_path / "calls.py"], capture_output=True, text=True, check=True)
    first = _CALLS.split("\n").index("    lambda: model.infill(wrong),") + 1
    assert done.stdout.splitlines() == [*(str([(True, first + i)]) for i in range(5)), "[]"]
