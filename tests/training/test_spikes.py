"""Loss spikes: what counts as one, where the run stops, and PaLM's remedy."""

import dataclasses
import gc
import json
import shutil

import equinox as eqx
import jax
import numpy as np
import pytest
from support.runs import MODEL, log_lines, params, same

from upalm.checkpoints.manager import Checkpoints
from upalm.data.loader import Loader
from upalm.model.palm import Decoder, empty_model
from upalm.training import loop
from upalm.training.config import CheckpointConfig
from upalm.training.launch import run
from upalm.training.spikes import LossSpike, SpikeConfig, SpikeDetector


@pytest.fixture
def spoiled(monkeypatch):
    """Rows 28 to 31, which are batch 7, have an infinite weight."""
    make = Loader.batch

    def batch(self, step):
        rows = make(self, step)
        if self.first_row(step) == 28:
            rows.loss_weights[:] = np.inf
        return rows

    monkeypatch.setattr(Loader, "batch", batch)


def test_spike_is_a_jump_or_a_loss_that_is_not_finite():
    check = SpikeDetector(SpikeConfig(threshold=1.0, window=8))
    for step in range(8):
        check(step, 3.0 + 0.1 * step, 1.0)
    check(8, 4.2, 1.0)
    with pytest.raises(LossSpike, match="loss 4.6.*usual loss 3.45.* at step 9"):
        check(9, 4.6, 1.0)
    for loss, norm in ((float("nan"), 1.0), (3.0, float("inf"))):
        with pytest.raises(LossSpike):
            SpikeDetector(SpikeConfig())(1, loss, norm)
    SpikeDetector(SpikeConfig())(1, 1e9, 1.0)  # without a threshold, a jump is none


def test_spike_stops_the_run_and_says_where(config, spoiled):
    with pytest.raises(FloatingPointError, match=r"at step 8 \(batch 7, rows from 28\) .*last good.*steps/6"):
        run(config)
    assert all(row["step"] < 8 for row in log_lines(config.out))


def test_spike_without_a_checkpoint_names_step_and_folder(config, tokenizer, tokens):
    model = Decoder(MODEL, key=jax.random.key(0))
    model = eqx.tree_at(lambda m: m.embed, model, model.embed * np.nan)
    with pytest.raises(FloatingPointError, match="at step 1 .* of .*run; there is no checkpoint"):
        loop.fit(config, model, tokenizer, tokens, tokens)


def test_palms_remedy_goes_back_and_skips_batches(config, spoiled, tmp_path):
    """A spike at step 8: back to step 3, skipping 6 batches from there."""
    remedy = SpikeConfig(remedy="rewind", rewind_steps=4, skip_batches=6)
    config = dataclasses.replace(config, spikes=remedy, checkpoints=CheckpointConfig(last=10))
    run(config)
    rows = log_lines(config.out)
    [event] = [row for row in rows if "event" in row]
    assert event == {"step": 3, "event": "rewind", "spike_step": 8, "spike_loss": "nan", "skipped_batches": 6}
    assert json.loads((config.out / "skipped.json").read_text()) == [[3, 6]]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    assert (config.out / "before_rewind" / "6").is_dir()

    # the same as a run that skips these batches from the start
    plain = dataclasses.replace(config, out=tmp_path / "plain")
    plain.out.mkdir()
    (plain.out / "skipped.json").write_text("[[3, 6]]")
    shutil.copy(config.out / "config.json", plain.out / "config.json")
    run(plain)
    assert same(params(config.out), params(plain.out))


def test_no_state_is_held_while_another_is_read(config, spoiled, monkeypatch):
    """A pod that holds a state once could not read the checkpoint of a rewind or a resume beside it."""
    held, restore, shape = [], Checkpoints.restore, empty_model(MODEL).blocks.w_gate.shape

    def count(self, item, *arguments):
        gc.collect()
        held.append((item, sum(x.shape == shape for x in jax.live_arrays())))
        return restore(self, item, *arguments)

    monkeypatch.setattr(Checkpoints, "restore", count)
    remedy = SpikeConfig(remedy="rewind", rewind_steps=4, skip_batches=6)
    run(dataclasses.replace(config, spikes=remedy, checkpoints=CheckpointConfig(last=10)))
    shutil.rmtree(config.out / "steps" / "12")
    run(dataclasses.replace(config, spikes=remedy, checkpoints=CheckpointConfig(last=10)))
    assert held == [("model", 0), ("optimizer", 2)] * 2  # w_gate and w_up of the model that is read first


def test_remedy_needs_an_earlier_checkpoint(config, spoiled):
    config = dataclasses.replace(config, spikes=SpikeConfig(remedy="rewind", rewind_steps=8))
    with pytest.raises(FloatingPointError, match="No checkpoint is 8 steps before the spike: save more often"):
        run(config)


def test_remedy_is_applied_a_limited_number_of_times(config, spoiled):
    short = SpikeConfig(remedy="rewind", rewind_steps=4, skip_batches=1, most=1)
    with pytest.raises(FloatingPointError, match="at step 7 .*Batches were skipped 1 times already"):
        run(dataclasses.replace(config, spikes=short, checkpoints=CheckpointConfig(last=10)))
