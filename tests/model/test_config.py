"""ModelConfig's counts against the papers', and the shapes that it refuses."""

from dataclasses import replace

import numpy as np
import pytest

from upalm.checkpoints.arrays import to_arrays
from upalm.model.config import PALM, ModelConfig
from upalm.model.palm import empty_model


def count(config: ModelConfig) -> int:
    """Parameters of the arrays, without norm scales."""
    arrays = to_arrays(empty_model(config))
    return sum(int(np.prod(x.shape)) for name, x in arrays.items() if not name.endswith("norm"))


@pytest.mark.parametrize(("size", "billions"), [("8b", 8.63), ("62b", 62.50), ("540b", 540.35)])
def test_parameter_counts(size, billions):
    assert round(PALM[size].n_params / 1e9, 2) == billions
    assert count(PALM[size]) == PALM[size].n_params


@pytest.mark.parametrize("block", ["parallel", "sequential", "post_norm"])
@pytest.mark.parametrize("tied_head", [True, False])
def test_parameter_counts_of_open_models(block, tied_head):
    shape = ModelConfig(vocab_size=100, d_model=48, n_layers=3, n_heads=6, d_head=10, d_ff=70, n_kv_heads=2)
    config = replace(shape, block=block, tied_head=tied_head, qkv_bias=True, qk_norm="flat", final_norm_scale=True)
    assert count(config) == config.n_params


@pytest.mark.parametrize(("size", "teraflops"), [("8b", 0.0550), ("62b", 0.388), ("540b", 3.28)])
def test_flops_per_token(size, teraflops):
    flops = PALM[size].train_flops_per_token(2048)
    assert float(f"{flops / 1e12:.3g}") == teraflops


def test_mfu_is_the_papers():
    """PaLM Table 3 and section 4.1: 46.2% with attention, 45.7% without."""
    config = PALM["540b"]
    mfu = config.mfu(238.3e3, n_chips=6144, peak_flops=275e12)
    assert round(mfu, 3) == 0.462
    assert round(mfu * 6 * config.n_params / config.train_flops_per_token(), 3) == 0.457


def test_small_sizes():
    assert PALM["tiny"].n_params < 2e6
    assert 0.9e8 < PALM["small"].n_params < 1.2e8
    assert 0.9e9 < PALM["1b"].n_params < 1.3e9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_head": 7}, "even"),
        ({"n_heads": 3, "n_kv_heads": 2}, "multiple"),
        ({"n_layers": 0}, "at least 1"),
        ({"norm_eps": 0.0}, "norm_eps is 0"),
        ({"embed_scale": 0.0}, "embed_scale is 0"),
        ({"logit_scale": 0.0}, "logit_scale is 0.0, expected above 0"),
        ({"xpos_scale_base": -1}, "xpos_scale_base is -1"),
        ({"rope_factor": 0.5}, "rope_factor 0.5.*at least 1"),
        ({"rope_low_freq_factor": 4.0}, "low < high"),
        ({"logit_scale": float("nan")}, "logit_scale is nan, expected a finite number"),
        ({"rope_factor": float("nan")}, "rope_factor is nan, expected a finite number"),
        ({"norm_offset": float("-inf")}, "norm_offset is -inf, expected a finite number"),
        ({"rope_theta": float("inf")}, "rope_theta is inf, expected a finite number"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(ModelConfig(), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": "sideways"}, "block is 'sideways', expected one of parallel, sequential, post_norm"),
        ({"d_model": 128.0}, "d_model is 128.0, expected a whole number of at least 1"),
        ({"n_layers": True}, "n_layers is True, expected a whole number of at least 1"),
        ({"tied_head": "no"}, "tied_head is 'no', expected True or False"),
    ],
)
def test_unknown_choices_and_other_types_are_refused(change, message):
    """A config.json of a later version, or one written by hand, may hold them."""
    config = object.__new__(ModelConfig)
    config.__dict__.update(vars(ModelConfig()) | change)
    with pytest.raises(ValueError, match=message):
        config.__post_init__()
