"""GenerationConfig: what it takes and what it refuses."""

import subprocess
import sys

import pytest

from upalm.inference.config import GenerationConfig


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens is -1, expected a whole number of at least 0"),
        ({"max_new_tokens": (1, -2)}, "max_new_tokens is -2"),
        ({"num_samples": 0}, "num_samples is 0"),
        (
            {"num_samples": 3},
            "num_samples is 3 and the temperature 0, at which all samples are alike: set a temperature",
        ),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1 << 32}, r"less than 2\*\*32"),
        ({"stop": "\n"}, r"expected a sequence of texts: stop=\('\\n',\)"),
        ({"stop": ("a", "")}, "a stop string is empty"),
        ({"stop": ("a\ud83d",)}, r"a stop string has the lone surrogate U\+D83D at character 1"),
    ],
    ids=ascii,
)
def test_values_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**wrong)


def test_values_of_another_type_are_refused_and_nan_too():
    """The code itself refuses them, in a process whose types nothing else checks."""
    program = """
from upalm.inference.config import GenerationConfig
nan = float("nan")
for wrong in (
    {"mode": "ngl"}, {"attention": "full"}, {"max_new_tokens": nan}, {"max_new_tokens": (1, nan)}, {"num_samples": nan},
    {"batch_size": nan}, {"seed": nan}, {"seed": "1"}, {"num_samples": True},
):
    try:
        GenerationConfig(**wrong)
        print("taken", wrong)
    except ValueError as e:
        print(e)
"""
    lines = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    lines = lines.splitlines()
    assert lines[0] == "mode is 'ngl', expected one of auto, none, s2s, nlu, nlg."
    assert lines[1].startswith("attention is 'full', expected one of prefix, causal")
    assert all("expected a whole number of at least" in line for line in lines[2:]) and len(lines) == 9


def test_samplers_and_flags_of_another_type_are_refused():
    """Where the jaxtyping hook of these tests is off, nothing else checks the types."""
    program = """
from upalm.inference.config import GenerationConfig, Sampler
for call in (
    lambda: GenerationConfig(sampler=0.8),
    lambda: GenerationConfig(constrained="no"),
    lambda: Sampler("0.8"),
    lambda: Sampler(True),
    lambda: Sampler(1.0, top_p=None),
    lambda: Sampler(1.0, min_p="x"),
):
    try:
        print("taken", call())
    except Exception as e:
        print(type(e).__name__, e)
"""
    lines = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert lines.splitlines() == [
        "ValueError sampler is 0.8, expected a Sampler, such as Sampler(temperature=0.8).",
        "ValueError constrained is 'no', expected True or False.",
        "ValueError temperature is '0.8', expected 0 (greedy), or a finite number of at least 1e-06.",
        "ValueError temperature is True, expected 0 (greedy), or a finite number of at least 1e-06.",
        "ValueError top_p is None, expected a number above 0 and up to 1.",
        "ValueError min_p is 'x', expected a number from 0 to 1.",
    ]


def test_another_attention_is_not_taken_for_causal():
    """Where the jaxtyping hook of these tests is off, nothing else checks the types."""
    program = """
from upalm.inference.decoding import prefill
from upalm.inference.scoring import score
for call in (
    lambda: score(None, [], attention="prefx"),
    lambda: prefill.__wrapped__(None, None, None, max_new=0, attention="prefx"),
):
    try:
        print("taken", call())
    except Exception as e:
        print(e)
"""
    lines = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert lines.splitlines() == ["attention is 'prefx', expected one of prefix, causal."] * 2


def test_lists_are_taken_and_the_config_is_hashable():
    config = GenerationConfig(stop=["a", "b"], max_new_tokens=[1, 2])
    assert config == GenerationConfig(stop=("a", "b"), max_new_tokens=(1, 2))
    assert len({config, GenerationConfig()}) == 2


@pytest.mark.parametrize(("mode", "with_gaps", "without"), [("auto", "nlg", "none"), ("s2s", "s2s", "s2s")])
def test_auto_is_nlg_for_gaps_and_none_elsewhere(mode, with_gaps, without):
    config = GenerationConfig(mode=mode)
    assert (config.mode_for(True), config.mode_for(False)) == (with_gaps, without)
