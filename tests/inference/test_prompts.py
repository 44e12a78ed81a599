"""Prompts: what training had as inputs."""

import numpy as np
import pytest

from upalm import ul2r
from upalm.inference import prompts
from upalm.ul2r.symbols import EOS_ID


def test_prompts_have_mode_token_then_text_with_sentinels(tokenizer):
    s0 = tokenizer.symbols.sentinels[0]
    expected = [*tokenizer.encode("[NLU]"), *tokenizer.encode("a "), s0, *tokenizer.encode(" b")]
    assert prompts.prompt_ids(tokenizer, "a <extra_id_0> b", "nlu") == expected
    assert prompts.prompt_ids(tokenizer, ["a ", " b"], "nlu") == expected


@pytest.mark.parametrize("denoiser", [*ul2r.UL2R[:2], *ul2r.UL2R_EOS[:2], *ul2r.UL2R_INFILL[:2]], ids=repr)
def test_prompts_are_the_inputs_of_training(tokenizer, denoiser):
    segmenter = ul2r.Segmenter(denoiser, ul2r.Budget.joint(128), tokenizer.symbols)
    a, b = (np.array(tokenizer.encode(x)) for x in ("def f(x", "return x"))
    mask = np.r_[np.zeros(len(a), bool), True, True, np.zeros(len(b), bool)]
    example = segmenter.frame(ul2r.corrupt(np.r_[a, 7, 7, b], mask, tokenizer.symbols.sentinels))
    assert prompts.prompt_ids(tokenizer, "def f(x<extra_id_0>return x", denoiser.mode, denoiser.inputs_eos) == (
        example.inputs.tolist()
    )


def test_answers_have_each_span_after_its_sentinel(tokenizer):
    s0, s1 = tokenizer.symbols.sentinels[:2]
    expected = [s0, *tokenizer.encode("x, y"), s1, EOS_ID]
    assert prompts.span_ids(tokenizer, ["x, y", ""]) == expected


@pytest.mark.parametrize(
    "text", ["a <extra_id_00> b", "<extra_id_01>", "<extra_id_\u0660>", "<extra_id_\u06f0>", "<extra_id_>"]
)
def test_only_the_exact_words_of_a_sentinel_are_gaps(tokenizer, text):
    """What is written otherwise is text: nothing of it is lost."""
    assert prompts.split_gaps(text) == (text,)
    assert tokenizer.decode(prompts.prompt_ids(tokenizer, text)) == text
    assert prompts.split_gaps(f"{text}<extra_id_0>") == (text, "")
