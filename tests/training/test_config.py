"""Settings as JSON, and what counts as another run."""

import math
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import optax
import pytest

from upalm.training.config import (
    CheckpointConfig,
    Continue,
    LoggingConfig,
    TrainConfig,
    differences,
    from_json,
    to_json,
)
from upalm.training.optim import Adafactor, AdamW, Optimizer, Schedule
from upalm.training.spikes import SpikeConfig


def test_settings_of_an_earlier_version_are_the_same_run():
    """Settings of earlier versions name classes otherwise, and lack fields that have been added since."""
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


def check(settings, **changes):
    """Check changed settings as Python does outside of tests, whose type checks would come first."""
    for name, value in changes.items():
        object.__setattr__(settings, name, value)
    settings.__post_init__()
    return settings


@pytest.mark.parametrize(
    "change",
    [{"n_steps": 0}, {"accumulation": 3}, {"n_steps": True}, {"n_steps": 2.5}, {"save_every": math.nan}, {"seed": 2.5}],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        check(TrainConfig(Path("run")), **change)


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (Schedule(), {"kind": "linear"}, "kind is 'linear', expected one of constant, cosine, rsqrt"),
        (SpikeConfig(), {"remedy": "rewnd"}, "remedy is 'rewnd', expected one of stop, rewind"),
        (LoggingConfig(), {"writers": ("tensorbord",)}, "writers is .'tensorbord',., expected one of tensorboard"),
        (Continue(Path("base")), {"remat": "some"}, "remat is 'some', expected one of kept, none, matmuls, full"),
    ],
)
def test_misspelt_choices_are_refused(settings, change, message):
    """The run would do something else than what was asked."""
    with pytest.raises(ValueError, match=message):
        check(settings, **change)


@pytest.mark.parametrize("out", [Path("gs://bucket/run"), Path("gs://bucket/run").absolute()])
def test_run_folder_in_a_bucket_is_refused(out):
    """Otherwise the run folder would be a local `gs:/bucket/run`, and end with its machine."""
    with pytest.raises(ValueError, match="--out gs://bucket/run is in a bucket.*--checkpoints.folder gs://bucket/run"):
        TrainConfig(out=out)


def test_start_in_a_bucket_is_refused():
    with pytest.raises(ValueError, match="--start.checkpoint gs://bucket/run is in a bucket"):
        Continue(Path("gs://bucket/run"))


def test_folders_may_be_texts():
    start = check(Continue(Path()), checkpoint="runs/base")
    assert check(TrainConfig(Path(), start), out="runs/x") == TrainConfig(Path("runs/x"), Continue(Path("runs/base")))


@dataclass(frozen=True)
class PlainDescent:
    schedule: Schedule = field(default_factory=Schedule)

    def build(self, n_steps):
        return optax.sgd(self.schedule.build(n_steps))


def test_any_optimizer_with_schedule_and_build_is_accepted():
    config = TrainConfig(Path("run"), optimizer=PlainDescent(Schedule(peak=1.0)))
    assert isinstance(config.optimizer, Optimizer)
    stored = to_json(config)
    assert stored["optimizer"]["class"] == "PlainDescent" and stored["optimizer"]["schedule"]["peak"] == 1.0
    with pytest.raises(ValueError, match="'PlainDescent', which is none of .*run the recipe that defines it"):
        from_json(TrainConfig, stored)


def test_optimizer_without_a_schedule_is_refused():
    with pytest.raises((ValueError, TypeError), match="optimizer"):
        TrainConfig(Path("run"), optimizer=optax.sgd(1.0))


def test_optimizer_that_is_no_dataclass_is_refused():
    """Settings of such an optimizer could not be recorded."""

    class Plain:
        schedule = Schedule()

        def build(self, n_steps):
            return optax.sgd(self.schedule.build(n_steps))

    with pytest.raises(ValueError, match="optimizer is .*Plain.*, expected a frozen dataclass with a `schedule`"):
        TrainConfig(Path("run"), optimizer=Plain())


@pytest.mark.parametrize(
    "make",
    [
        lambda bad: Schedule("constant", peak=bad),
        lambda bad: Schedule(final=bad),
        lambda bad: Adafactor(clip_norm=bad),
        lambda bad: Adafactor(beta1=bad),
        lambda bad: AdamW(beta2=bad),
        lambda bad: AdamW(weight_decay=bad),
        lambda bad: CheckpointConfig(minutes=bad),
        lambda bad: SpikeConfig(threshold=bad),
    ],
)
@pytest.mark.parametrize("bad", [math.nan, -1.0])
def test_settings_that_are_no_number_or_negative_are_refused(make, bad):
    with pytest.raises(ValueError, match="expected|above"):
        make(bad)


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_seed_that_jax_cannot_take_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed is .*, expected 0 to 2\^63 - 1"):
        TrainConfig(Path("run"), seed=seed)
