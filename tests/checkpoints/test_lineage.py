"""A checkpoint tells what it was trained on, at any of its steps and through its continuations."""

import json
import shutil
from dataclasses import replace

import jax
import pytest

from upalm.checkpoints.config_json import split_step
from upalm.checkpoints.folder import export, export_run, load_model, open_checkpoint
from upalm.checkpoints.lineage import Stage, stages
from upalm.data.config import DataConfig
from upalm.model.config import ModelConfig
from upalm.training.config import CheckpointConfig, Continue, Scratch, TrainConfig
from upalm.training.launch import run


@pytest.fixture(scope="module")
def runs(tmp_path_factory, source_text):
    """A causal run of 6 steps with a batch that grows, and UL2R of 2 steps from its middle."""
    folder = tmp_path_factory.mktemp("lineage")
    (folder / "text.txt").write_text(source_text)
    shape = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=2, d_head=16, d_ff=64, seq_len=64)
    base = TrainConfig(
        out=folder / "base",
        start=Scratch(shape),
        data=DataConfig(str(folder / "text.txt"), "causal", seq_len=64, batch_size=2, batch_ramp=((4, 6),)),
        n_steps=6,
        save_every=3,
        eval_every=6,
        checkpoints=CheckpointConfig(every=3),
    )
    run(base)
    data = replace(base.data, mixture="ul2r", batch_size=2, batch_ramp=(), joint_budget=True)
    fork = replace(base, out=folder / "fork", start=Continue(base.out / "steps" / "3"), data=data, n_steps=2, seed=7)
    run(fork)
    return folder


def test_stages_add_up_the_tokens_of_every_step(runs):
    first, last = Stage("causal", 3 * 2 * 64, 0), Stage("causal", (4 * 2 + 2 * 6) * 64, 0)
    assert stages(runs / "base" / "steps" / "3") == [first]
    assert stages(runs / "base") == stages(runs / "base" / "steps" / "6") == [last]
    assert stages(runs / "fork") == [first, Stage("ul2r", 2 * 2 * 64, 7)]
    shutil.move(runs / "base", runs / "moved")
    try:
        assert stages(runs / "fork") == [first, Stage("ul2r", 2 * 2 * 64, 7)]  # it was told when it began
    finally:
        shutil.move(runs / "moved", runs / "base")


def test_an_exported_run_knows_what_led_to_it(runs, tmp_path):
    """The base's folder is not at hand where an export goes; what suited the run's machine stays behind."""
    log = runs / "fork" / "metrics.jsonl"
    log.write_text("".join(f'{{"step": {i}, "loss": 1.0}}\n' for i in range(350)) + '{"validation_loss": 2.0}\n')
    export_run(runs / "fork", tmp_path / "export")
    shutil.move(runs / "base", runs / "moved")
    try:
        exported = load_model(tmp_path / "export")
        assert exported.info == load_model(runs / "fork").info
        assert exported.info.stages == (Stage("causal", 3 * 2 * 64, 0), Stage("ul2r", 2 * 2 * 64, 7))
    finally:
        shutil.move(runs / "moved", runs / "base")
    assert json.loads((tmp_path / "export" / "config.json").read_text())["settings"] is None
    lines = (tmp_path / "export" / "metrics.jsonl").read_text().splitlines()
    assert 100 <= len(lines) <= 120 and "validation" in lines[-1]


def test_a_continuation_begins_with_the_weights_of_that_step(runs):
    middle = load_model(runs / "base" / "steps" / "3").model
    end = load_model(runs / "base").model
    same = jax.tree.map(lambda a, b: bool((a == b).all()), middle, end)
    assert not all(jax.tree.leaves(same))
    for open_ in (load_model, open_checkpoint):  # also where no weights are read yet
        with pytest.raises(ValueError, match=r"no checkpoint 4 in .*: there are \[6, 3\]"):
            open_(runs / "base" / "steps" / "4")


def test_what_nobody_knows_is_unknown(runs, tokenizer, tmp_path):
    assert stages(tmp_path) is None
    model, tokenizer, _ = load_model(runs / "base")
    export(tmp_path / "import", model, tokenizer, {})
    assert stages(tmp_path / "import") is None
    assert split_step(tmp_path / "steps" / "x") == (tmp_path / "steps" / "x", None)
