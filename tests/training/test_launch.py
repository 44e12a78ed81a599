"""Runs from their settings: weights and tokenizer to start from, and run folders that repeat themselves."""

import dataclasses
import gc
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import jax
import pytest
from support.runs import MODEL, log_lines, params, same, steps_of, tiny_config

from upalm.checkpoints.folder import export, load_model
from upalm.checkpoints.lineage import read_info
from upalm.cli import main as cli
from upalm.data import shards
from upalm.distributed.processes import ProcessConfig
from upalm.model.palm import Decoder
from upalm.training import launch, loop, step
from upalm.training.config import CheckpointConfig, Continue, Scratch
from upalm.training.launch import prepare, rerun, run, run_once
from upalm.training.optim import AdamW


def test_rows_longer_than_the_models_are_refused(config, tokenizer, tmp_path):
    export(tmp_path / "m", Decoder(MODEL, key=jax.random.key(0)), tokenizer, {})
    data = dataclasses.replace(config.data, seq_len=128)
    config = dataclasses.replace(config, start=Continue(tmp_path / "m"), data=data)
    with pytest.raises(ValueError, match="rows of 128 are longer than the model's 64"):
        prepare(config)


def test_long_rows_are_refused_before_a_tokenizer_is_trained(config, monkeypatch):
    monkeypatch.setattr(launch, "_tokenizer", lambda *arguments: pytest.fail("a tokenizer was trained first"))
    with pytest.raises(ValueError, match="rows of 128 are longer than the model's 64"):
        prepare(dataclasses.replace(config, start=Scratch(MODEL), data=dataclasses.replace(config.data, seq_len=128)))


def test_run_uses_the_tokenizer_of_its_shards(config, tokenizer, tmp_path, source_text):
    (tmp_path / "a.txt").write_text(source_text)
    shards.build(str(tmp_path / "a.txt"), str(tmp_path / "built"), tokenizer)
    data = dataclasses.replace(config.data, source=str(tmp_path / "built"))
    out = run(dataclasses.replace(config, data=data, n_steps=2))
    assert load_model(out)[1].hash == tokenizer.hash
    small = Scratch(dataclasses.replace(MODEL, vocab_size=400))
    with pytest.raises(ValueError, match="512 subwords, the model 400 embeddings"):
        run(dataclasses.replace(config, out=tmp_path / "b", start=small, data=data))


def test_run_folder_repeats_itself(config, tmp_path, monkeypatch):
    run(config)
    monkeypatch.setattr(sys, "argv", ["upalm", "run", "--from", str(config.out), "--out", str(tmp_path / "again")])
    cli.main()
    assert same(params(config.out), params(tmp_path / "again"))
    described = json.loads((config.out / "config.json").read_text())
    assert described["settings"]["out"] == str(config.out)
    assert {"jax", "jaxlib", "upalm", "python"} <= described["versions"].keys()
    [manifest] = described["data_manifests"].values()
    assert len(manifest) == 64
    with pytest.raises(ValueError, match="no checkpoint at"):
        rerun(tmp_path / "nowhere", {})
    with pytest.raises(ValueError, match=r"steps/12 is a checkpoint, expected the folder of a run: --from "):
        rerun(config.out / "steps" / "12", {})
    assert rerun(config.out / "steps", {}) == config.out


def test_run_once_joins_the_processes_first(config, monkeypatch):
    """The check of the folder asks JAX for the number of this process, after which none can be joined."""
    calls = []
    monkeypatch.setattr(ProcessConfig, "connect", lambda _: calls.append("connect"))
    monkeypatch.setattr(launch, "check_folder", lambda _: calls.append("check"))
    monkeypatch.setattr(launch, "run", lambda _: calls.append("run"))
    assert run_once(config) == config.out / "steps" / "12"
    assert calls == ["connect", "check", "run"]


def test_run_that_is_repeated_elsewhere_leaves_the_first_alone(config, tmp_path):
    """It has checkpoints of its own, and no process of the first run; and --changed was of one start."""
    bucket = CheckpointConfig(folder=str(tmp_path / "bucket"))
    run(dataclasses.replace(config, n_steps=2, checkpoints=bucket, changed=True))
    stored = json.loads((config.out / "config.json").read_text())
    assert stored["settings"]["changed"] is False
    first_of_two = {"coordinator": "nowhere:1", "n_processes": 2, "process_id": 0}
    stored["settings"]["processes"] |= first_of_two
    stored["settings"]["keep"] = stored["settings"].pop("checkpoints") | {"class": "Keep"}  # as in earlier versions
    (config.out / "config.json").write_text(json.dumps(stored))
    rerun(config.out, {"out": tmp_path / "again"})
    assert steps_of(tmp_path / "again") == [2] and log_lines(tmp_path / "again") == log_lines(config.out)
    assert (tmp_path / "bucket" / "steps" / "2").is_dir() and not (config.out / "steps").exists()


def test_relative_paths_are_found_from_another_directory(tmp_path, monkeypatch, source_text):
    """Text, checkpoint and run folder of `run --from` lie where they lay when the run began."""
    (tmp_path / "project" / "texts").mkdir(parents=True)
    (tmp_path / "project" / "texts" / "a.txt").write_text(source_text)
    monkeypatch.chdir(tmp_path / "project")
    first = tiny_config(Path("first"), "texts", n_steps=2)
    run(first)
    run(dataclasses.replace(first, out=Path("second"), start=Continue(Path("first"))))
    monkeypatch.chdir(tmp_path)
    assert rerun(Path("project/second"), {}).resolve() == tmp_path / "project" / "second"
    assert rerun(Path("project/second"), {"out": Path("again")}).resolve() == tmp_path / "again"
    assert same(params(tmp_path / "again"), params(tmp_path / "project" / "second"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "project"]


def test_moved_run_folder_resumes_where_it_is(config, tmp_path, capsys):
    run(dataclasses.replace(config, n_steps=4))
    shutil.move(config.out, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "steps" / "4")
    assert rerun(tmp_path / "moved", {}) == tmp_path / "moved"
    assert not config.out.exists() and (tmp_path / "moved" / "steps" / "4").is_dir()


def test_run_ends_with_loss_checkpoint_and_next_commands(config, capsys):
    run(dataclasses.replace(config, n_steps=2))
    *_, finished, checkpoint, use, measure = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"finished 2 steps, validation loss \d\.\d{3} nats per token", finished)
    assert checkpoint == f"checkpoint: {config.out}/steps/2" and Path(checkpoint.split(": ")[1]).is_dir()
    assert parse_command(use, "try").checkpoint == config.out
    measurement = parse_command(measure, "measure")
    assert (measurement.checkpoint, measurement.data) == (config.out, "TEXT")  # the run is on shards


@pytest.mark.parametrize(
    ("changes", "is_supervised", "expected"),
    [
        ({"source": "a b.txt"}, False, {"data": "a b.txt"}),
        ({"source": "texts", "include": ("*.md", "*.py")}, False, {"data": "texts", "include": ("*.md", "*.py")}),
        ({"source": "texts", "skip_undecodable": True}, False, {"data": "texts", "skip_undecodable": True}),
        ({"source": "pairs.jsonl"}, True, {"data": "TEXT"}),
    ],
)
def test_the_next_commands_parse_whatever_the_text(config, changes, is_supervised, expected):
    """`upalm eval` is told the text, and how it was read; of pairs it has no measure."""
    data = dataclasses.replace(config.data, **changes)
    config = dataclasses.replace(config, out=config.out / "a run", data=data)
    config.out.mkdir(parents=True)
    (config.out / "metrics.jsonl").touch()
    *_, use, measure = launch.summary(config, is_supervised).splitlines()
    parse_command(use, "try")
    measurement = parse_command(measure, "measure")
    assert measurement.checkpoint == config.out
    assert {name: getattr(measurement, name) for name in expected} == expected


def test_the_text_is_named_from_any_directory(config, tmp_path, monkeypatch):
    """`run --from` begins elsewhere than the run did."""
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    config.out.mkdir(parents=True)
    (config.out / "metrics.jsonl").touch()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source="a.txt"))
    measure = launch.summary(config, False).splitlines()[-1]
    assert parse_command(measure, "measure").data == str(tmp_path / "a.txt")


def parse_command(line: str, heading: str):
    """The command that a printed line proposes, parsed as the shell and the command line do."""
    printed, _, command = line.partition(": ")
    program, *words = shlex.split(command)
    assert (printed, program) == (heading, "upalm")
    return cli.parse(*cli.split(words))


def test_run_on_pairs_is_followed_by_a_prompt(config, tokenizer, tmp_path, capsys):
    """Such a model answers, and fills no gaps, whatever the mixture is that the config names."""
    (tmp_path / "a.jsonl").write_text("".join(f'{{"inputs": "{i}?", "targets": "{i}"}}\n' for i in range(100)))
    shards.build(str(tmp_path / "a.jsonl"), str(tmp_path / "pairs"), tokenizer)
    data = dataclasses.replace(config.data, source=str(tmp_path / "pairs"))
    run(dataclasses.replace(config, n_steps=1, data=data))
    *_, use, measure = capsys.readouterr().out.splitlines()
    assert parse_command(use, "try").text == "Once" and parse_command(measure, "measure").data == "TEXT"


def test_run_holds_its_weights_once(config, monkeypatch):
    """Parameters and two moments, as plans count: from scratch and from a checkpoint, at the start and resumed."""
    run(dataclasses.replace(config, n_steps=1))
    sizes, shape = [], load_model(config.out).model.blocks.w_gate.shape

    def count(*arguments, **options):
        gc.collect()
        sizes.append(sum(x.shape == shape for x in jax.live_arrays()))
        return step.train_step(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", count)
    optimizer = AdamW(config.optimizer.schedule)
    scratch = dataclasses.replace(config, out=config.out.parent / "scratch", n_steps=1, optimizer=optimizer)
    ul2r = dataclasses.replace(scratch, out=config.out.parent / "ul2r", start=Continue(config.out))
    for some in (scratch, ul2r, dataclasses.replace(ul2r, n_steps=2, changed=True)):
        run(some)
    assert sizes == [2 * 3] * 3  # of w_gate and w_up


def test_resumed_run_needs_no_start(config, tmp_path):
    """After a lost host the checkpoint that it once started from may be gone; its history is kept."""
    run(dataclasses.replace(config, out=tmp_path / "base", n_steps=2))
    ul2r = dataclasses.replace(config, start=Continue(tmp_path / "base"), n_steps=4)
    run(ul2r)
    before = read_info(config.out)
    shutil.rmtree(config.out / "steps" / "4")
    shutil.rmtree(tmp_path / "base")
    run(ul2r)
    assert steps_of(config.out)[-1] == 4 and read_info(config.out) == before and len(before.stages) == 2


def test_ul2r_states_tokens_share_memory_and_hours(config, tmp_path, monkeypatch, capsys):
    """The base has 64 positions: rows of 256 become as long as these. Its run had 2 x 4 x 64 tokens."""
    base = run(dataclasses.replace(config, n_steps=2))
    words = [
        "--init",
        base,
        "--data",
        config.data.source,
        "--n-steps",
        1,
        "--batch-size",
        2,
        "--out",
        tmp_path / "ul2r",
    ]
    monkeypatch.setattr(sys, "argv", ["upalm", "run", "ul2r", "cpu", *map(str, words)])
    cli.main()
    said = capsys.readouterr().out
    assert "1 steps x 2 x 64, as long as the model's rows: 128 tokens (25.00% of the base's)" in said
    assert re.search(r"\nmemory of a step, as `upalm plan` has it: 0\.\d+ GiB per device\n", said)
    assert "hours at an MFU of 40% of 0.25 TFLOP/s per device\n" in said
    settings = json.loads((tmp_path / "ul2r" / "config.json").read_text())["settings"]
    assert settings["data"]["mixture"] == "ul2r_infill" and settings["optimizer"]["factored"]
