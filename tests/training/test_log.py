"""The log of a run: metrics of the model and of the machine, and profiles."""

import dataclasses

import jax
import pytest
from support.runs import MODEL

from upalm.distributed.chips import Chip
from upalm.training import log
from upalm.training.config import LoggingConfig
from upalm.training.launch import run
from upalm.training.metrics import read


def test_metrics_hold_losses_rates_and_memory(config, monkeypatch):
    monkeypatch.setattr(log, "chip_of", lambda kind: Chip("test", flops=1e12))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, seq_len=32))  # the model's rows have 64
    run(config)
    rows = read(config.out / "metrics.jsonl")
    last = next(row for row in rows if row["step"] == 12 and "loss" in row)
    names = {name for row in rows for name in row}
    assert {"loss", "loss_r", "loss_x", "loss_s", "grad_norm", "learning_rate", "validation_loss"} <= names
    assert {"tokens_per_second", "mfu", "data_wait", "checkpoint_seconds", "memory_gb"} <= last.keys()
    flops = 6 * MODEL.n_params + 12 * 2 * 2 * 16 * 32
    assert last["mfu"] == pytest.approx(last["tokens_per_second"] * flops / 1e12 / len(jax.devices()), rel=1e-4)
    assert 0 <= last["data_wait"] < 1 and last["checkpoint_seconds"] > 0 and last["memory_gb"] > 0.05


def test_unknown_chip_has_no_mfu(config):
    run(dataclasses.replace(config, n_steps=3))
    rows = read(config.out / "metrics.jsonl")
    assert [row["mfu"] for row in rows if "mfu" in row] == [None, None]


def test_profile_of_some_steps(config):
    run(dataclasses.replace(config, n_steps=4, logging=LoggingConfig(profile=(2, 3))))
    (trace,) = (config.out / "profile").rglob("*.xplane.pb")
    assert b"PjitFunction" in trace.read_bytes()
    assert b".py:" not in trace.read_bytes(), "watching Python's calls crashes when native threads come and go"


def test_profile_ends_with_the_run_and_bad_ranges_are_refused(config):
    run(dataclasses.replace(config, n_steps=4, logging=LoggingConfig(profile=(3, 9))))
    assert list((config.out / "profile").rglob("*.xplane.pb"))
    with pytest.raises(ValueError, match=r"profile \(5, 3\)"):
        LoggingConfig(profile=(5, 3))
