"""Numbered checkpoints of a run."""

import dataclasses
import os

import jax
import pytest
from support.runs import MODEL, tiny_config

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
