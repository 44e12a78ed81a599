"""Numbered checkpoints of a run."""

import dataclasses
import os
import shutil

import jax
import numpy as np
import pytest
from support.runs import MODEL, steps_of, tiny_config

from upalm.checkpoints.config_json import split_step
from upalm.checkpoints.folder import load_model
from upalm.checkpoints.manager import Checkpoints
from upalm.model.palm import Decoder
from upalm.training.launch import run
from upalm.training.optim import AdamW


@pytest.fixture
def finished(tmp_path, source_text):
    """Folder of a run of 12 steps."""
    (tmp_path / "text.txt").write_text(source_text)
    return run(tiny_config(tmp_path / "run", str(tmp_path / "text.txt")))


def test_truncated_checkpoints_are_named(finished):
    for path in sorted((finished / "steps").rglob("*")):
        if path.is_file() and path.stat().st_size > 1000:
            os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="none of the 2 checkpoints .* can be read: cannot read model of .*steps/12"):
        load_model(finished)


def test_state_of_another_optimizer_or_model_is_refused(finished):
    checkpoints = Checkpoints(finished)
    adamw = AdamW().build(10).init(Decoder(MODEL, key=jax.random.key(0)))
    with pytest.raises(ValueError, match="optimizer"):
        checkpoints.restore("optimizer", adamw)
    with pytest.raises(ValueError, match="of another model"):
        checkpoints.restore("model", Decoder(dataclasses.replace(MODEL, d_ff=128), key=jax.random.key(0)))
    checkpoints.close()


def test_reading_creates_and_deletes_nothing(finished):
    """A trainer's unfinished checkpoint survives readers, which it did not when they opened it as its owner."""
    unfinished = finished / "steps" / "999.orbax-checkpoint-tmp"
    unfinished.mkdir()
    before = sorted(finished.rglob("*"))
    load_model(finished)
    load_model(finished / "steps" / "9")
    assert unfinished.is_dir() and sorted(finished.rglob("*")) == before
    shutil.rmtree(finished / "steps")
    with pytest.raises(ValueError, match="no checkpoint in .*run/steps"):
        load_model(finished)
    assert not (finished / "steps").exists()


def test_links_to_a_step_and_the_folder_it_is_in_open(finished, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(finished / "steps" / "9")
    ninth = load_model(finished / "steps" / "9").model
    monkeypatch.chdir(finished / "steps" / "9")
    for place in (tmp_path / "link", "."):
        assert all(map(np.array_equal, *map(jax.tree.leaves, (load_model(place).model, ninth)))), place
    assert split_step(tmp_path / "link") == (finished, 9)


def test_readers_do_not_disturb_a_run(tmp_path, source_text, monkeypatch):
    """A run whose checkpoints are opened while they are written ends as it would alone."""
    (tmp_path / "text.txt").write_text(source_text)
    save = Checkpoints.save

    def save_and_read(self, step, *args):
        save(self, step, *args)
        if step > 3:
            load_model(str(self.folder.parent))

    monkeypatch.setattr(Checkpoints, "save", save_and_read)
    out = run(tiny_config(tmp_path / "run", str(tmp_path / "text.txt")))
    assert steps_of(out) == [9, 12]
