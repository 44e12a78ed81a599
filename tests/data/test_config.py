import dataclasses
import json
import pickle
import subprocess
import sys
from dataclasses import dataclass

import pytest
from support.loaders import SYMBOLS, few_tokens

from upalm import ul2r
from upalm.data.config import DataConfig
from upalm.data.loader import Loader
from upalm.training.config import Scratch, TrainConfig, differences, from_json, to_json


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixture": "ulr2"}, "did you mean 'ul2'"),
        ({"mixture": "Span(x=1)"}, "no denoiser class 'Span'"),
        ({"mixture": "PrefixLM('s')"}, "its name"),
        ({"mixture": "PrefixLM(name='s'), Causal(name='s')"}, "each denoiser its own"),
        ({"mixture": "PrefixLM(name='s', rate=0.1)"}, "rate"),
        ({"seq_len": 4}, "at least 8"),
        ({"batch_size": 0}, "at least"),
        ({"batch_ramp": ((5, 8), (5, 16))}, "rising steps"),
        ({"batch_ramp": ((0, 8),)}, "rising steps"),
        ({"batch_ramp": ((5, 0),)}, "at least 1 row"),
        ({"mixture": "UL2R"}, "did you mean 'ul2r'"),
        ({"source": ""}, "source is ''"),
    ],
)
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**change)


def test_a_mixture_written_in_a_config_is_that_of_python():
    text = ", ".join(repr(d) for d in ul2r.UL2)
    assert ul2r.mixture(text) == ul2r.UL2
    assert dataclasses.asdict(DataConfig(mixture=text))["mixture"] == text


def own_mixture(rate: float = 0.25) -> ul2r.Mixture:
    @dataclass(frozen=True, kw_only=True)
    class OfMyOwn(ul2r.PrefixLM):
        pass

    return (ul2r.R, OfMyOwn(name="mine", corruption_rate=rate))


def test_a_mixture_of_denoisers_is_kept_as_its_text():
    mine = own_mixture()
    config = DataConfig(mixture=mine, seq_len=64, batch_size=2)
    assert isinstance(config.mixture, str)
    assert ul2r.mixture(config.mixture) == mine == Loader(few_tokens(), config, SYMBOLS, seed=0).mixture
    assert DataConfig(mixture=ul2r.UL2R) == DataConfig(mixture="ul2r")
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_stored_mixture_reopens_or_names_the_missing_class(tmp_path):
    mine = own_mixture()
    config = TrainConfig(tmp_path, Scratch(), DataConfig(mixture=mine))
    stored = json.loads(json.dumps(to_json(config)))
    assert from_json(TrainConfig, stored) == config
    stored["data"]["mixture"] = stored["data"]["mixture"].replace("OfMyOwn", "OfAnother")
    with pytest.raises(ValueError, match="no denoiser class 'OfAnother' is defined.*import the module"):
        from_json(TrainConfig, stored)


def test_a_resumed_run_compares_its_mixture(tmp_path):
    first, other = (TrainConfig(tmp_path, Scratch(), DataConfig(mixture=own_mixture(rate))) for rate in (0.25, 0.5))
    assert not differences(first.identity(), first.identity())
    assert "corruption_rate=0.25" in str(differences(first.identity(), other.identity()))


WRONG = [
    ("D(seq_len='256')", "seq_len is '256', expected a whole number"),
    ("D(batch_size=1.5)", "batch_size is 1.5, expected a whole number"),
    ("D(batch_size=True)", "batch_size is True"),
    ("D(batch_ramp=((5,),))", "expected (step, rows)"),
    ("D(batch_ramp=((5, 8.5),))", "expected (step, rows)"),
    ("D(layout='document')", "expected 'concatenated' or 'documents'"),
    ("D(mixture=None)", "expected a name, text or a tuple"),
    ("D(mixture=(ul2r.R, 'x'))", "'x', which is no Denoiser"),
    ("D(mixture='PrefixLM(name=3)')", "named 3, expected a string"),
    ("replace(ul2r.R, max_spans=2.5)", "max_spans is 2.5"),
    ("replace(ul2r.R, roll='no')", "roll is 'no'"),
    (
        "Loader(Tokens.from_documents([[5] * 99]), D(), ul2r.Symbols(tuple(range(900, 1000)), {}), seed=1.5)",
        "seed is 1.5",
    ),
    ("sources.TextSource(None)", "no such file or folder: None"),
]


def test_values_of_the_wrong_type_are_refused():
    """Values are refused by the code itself, in a process whose types nothing else checks."""
    program = """
import sys
from dataclasses import replace
from upalm import ul2r
from upalm.data import DataConfig as D, Loader, Tokens, sources
SYMBOLS = ul2r.Symbols(tuple(range(900, 1000)), {})
for line in sys.stdin.read().splitlines():
    try:
        print("accepted", eval(line))
    except Exception as e:
        print(type(e).__name__, e)
"""
    lines = "\n".join(line for line, _ in WRONG)
    done = subprocess.run([sys.executable, "-c", program], input=lines, capture_output=True, text=True, check=True)
    for answer, (line, message) in zip(done.stdout.splitlines(), WRONG, strict=True):
        assert answer.startswith("ValueError ") and message in answer, (line, answer)
