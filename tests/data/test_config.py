import dataclasses
import json
import pickle
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
