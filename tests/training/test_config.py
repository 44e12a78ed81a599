"""Settings as JSON, and what counts as another run."""

from copy import deepcopy
from pathlib import Path

import pytest

from upalm.training.config import CheckpointConfig, LoggingConfig, TrainConfig, differences, from_json, to_json


def test_settings_of_an_earlier_version_are_the_same_run():
    """Its classes had other names, and lacked fields that have been added since."""
    here = TrainConfig(Path("run")).identity()
    stored = deepcopy(here)
    for name in ("block", "gate", "rope_factor"):
        del stored["start"]["model"][name]
    stored["spikes"]["class"] = "Spikes"
    assert differences(stored, here) == []
    stored["start"]["model"]["n_layers"] = 3
    assert differences(stored, here) == ["start.model.n_layers: 3 there, 32 here"]


def test_fields_of_an_earlier_version_are_read():
    config = TrainConfig(Path("run"), checkpoints=CheckpointConfig(last=5), logging=LoggingConfig(profile=(2, 3)))
    stored = to_json(config)
    for former, current in {"keep": "checkpoints", "watched": "logging", "hosts": "processes"}.items():
        stored[former] = stored.pop(current)
    stored["keep"]["class"], stored["watched"]["class"], stored["hosts"]["class"] = "Keep", "Watched", "Hosts"
    assert from_json(TrainConfig, stored) == config


@pytest.mark.parametrize("change", [{"n_steps": 0}, {"accumulation": 3}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match="n_steps|accumulation"):
        TrainConfig(Path("run"), **change)
