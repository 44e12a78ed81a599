"""Resuming: the state that a run starts from, and the folders that it refuses."""

import dataclasses
import shutil

import jax
import orbax.checkpoint as ocp
import pytest
from support.runs import MODEL, damage_checkpoint, log_lines, params, same, steps_of

from upalm.checkpoints.arrays import to_arrays
from upalm.checkpoints.folder import load_model
from upalm.data.readers import Document
from upalm.data.tokenizer import SentencePiece
from upalm.data.tokens import encode
from upalm.model.palm import Decoder
from upalm.training import launch, loop
from upalm.training.config import CheckpointConfig, Scratch
from upalm.training.launch import run
from upalm.training.resume import check_folder


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing file", "undescribed", "described by null"])
def test_damaged_checkpoint_is_named_and_passed_over(config, capsys, how):
    run(config)
    whole, log = params(config.out), log_lines(config.out)
    damage_checkpoint(config.out / "steps" / "12", how)
    model = load_model(config.out).model
    assert "passing over checkpoint 12 for the one before" in capsys.readouterr().err
    assert not same(to_arrays(model), whole)  # of step 9
    run(config)
    stderr = capsys.readouterr().err
    assert "steps/12" in stderr and "passing over checkpoint 12" in stderr
    assert same(params(config.out), whole)
    assert log_lines(config.out) == log
    assert (config.out / "damaged" / "12").is_dir()
    for step in (9, 12):
        damage_checkpoint(config.out / "steps" / str(step), how)
    with pytest.raises(ValueError, match="none of the 2 checkpoints .* can be read"):
        run(config)


def tensorstore_error():
    """An error as Orbax raises it: the reason is in the cause."""
    error = Exception("Encountered error while reading array index: (slice(0, 2, 1))")
    error.__cause__ = ValueError("RESOURCE_EXHAUSTED: Error reading local file: Too many open files")
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "x"), "steps/12 cannot be read now.*Permission denied"),
        (OSError(5, "Input/output error"), "steps/12 cannot be read now.*Input/output error"),
        (ValueError("PERMISSION_DENIED: Error opening"), "steps/12 cannot be read now"),
        (tensorstore_error(), "steps/12 cannot be read now.*Too many open files"),
        (MemoryError("no room"), "steps/12 cannot be read now.*no room"),
        (jax.errors.JaxRuntimeError("INTERNAL: Out of memory"), "steps/12 cannot be read now.*Out of memory"),
    ],
)
def test_checkpoints_that_cannot_be_read_now_are_left_as_they_are(config, monkeypatch, error, message):
    """A disk that is away or a device without memory is no damage: an older checkpoint would lose steps."""
    run(config)

    def fails(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "restore", fails)
        with pytest.raises(OSError, match=message):
            load_model(config.out)
        with pytest.raises(OSError, match=message):
            run(config)
    assert steps_of(config.out) == [9, 12] and not (config.out / "damaged").exists()


def test_error_beside_the_arrays_is_no_damage(config, monkeypatch):
    """An error while the JSON is read comes through two readers, each with its own handler."""
    run(config)
    restore = ocp.CheckpointManager.restore

    def fails(self, step, args):
        if "about" in args.keys():
            raise MemoryError("no room")
        return restore(self, step, args=args)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", fails)
    with pytest.raises(OSError, match="steps/12 cannot be read now.*no room"):
        load_model(config.out)


def test_changed_settings_are_refused_unless_allowed(config, capsys):
    run(dataclasses.replace(config, n_steps=6))
    with pytest.raises(ValueError, match="n_steps: 6 there, 12 here.*--changed"):
        run(config)
    run(dataclasses.replace(config, changed=True))
    assert "resuming with other settings: n_steps: 6 there, 12 here" in capsys.readouterr().err
    assert log_lines(config.out)[-1]["step"] == 12


def test_checkpoints_refuse_settings_without_the_folder(config, tmp_path):
    """A new machine's disk has no config.json, so the checkpoints themselves refuse other settings."""
    elsewhere = CheckpointConfig(folder=str(tmp_path / "bucket"))
    run(dataclasses.replace(config, checkpoints=elsewhere, n_steps=6))
    shutil.rmtree(config.out)
    with pytest.raises(ValueError, match="n_steps: 6 there, 12 here"):
        run(dataclasses.replace(config, checkpoints=elsewhere))


def test_another_tokenizer_is_refused_and_nothing_written(config, source_text):
    """Shards that were built anew in the same place may have another tokenizer."""
    run(config)
    before = (config.out / "config.json").read_text(), (config.out / "tokenizer.model").read_bytes()
    other = SentencePiece.train([source_text[:50_000]], 512)
    tokens = encode(other, [Document("a", source_text)])
    with pytest.raises(ValueError, match="was trained with tokenizer .* this run has"):
        loop.fit(config, Decoder(MODEL, key=jax.random.key(0)), other, tokens, tokens)
    assert before == ((config.out / "config.json").read_text(), (config.out / "tokenizer.model").read_bytes())


def test_folders_of_other_runs_or_files_are_refused(config, tokenizer, tokens):
    run(config)
    with pytest.raises(ValueError, match="seed: 0 there, 1 here"):
        run(dataclasses.replace(config, seed=1))
    other = config.out.parent / "other"
    other.mkdir()
    (other / "file").write_text("")
    with pytest.raises(ValueError, match=r"holds other files, such as file: choose another --out"):
        run(dataclasses.replace(config, out=other))


@pytest.mark.parametrize("name", ["steps", "steps/3"])
def test_place_of_checkpoints_is_no_run_folder(config, name):
    """A run that began there would write its checkpoints between those of the other."""
    (config.out / name).mkdir(parents=True)
    (config.out / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"run/{name} is a place of checkpoints of the run .*run: choose"):
        check_folder(dataclasses.replace(config, out=config.out / name))


def test_model_of_another_size_is_refused(config):
    run(config)
    other = dataclasses.replace(config, start=Scratch(dataclasses.replace(MODEL, d_ff=128)))
    with pytest.raises(ValueError, match="start.model.d_ff: 64 there, 128 here"):
        run(other)


def test_second_trainer_on_a_folder_in_use_is_refused(config, tmp_path, monkeypatch):
    """The folder of the run refuses, or that of its checkpoints; the first run is not disturbed."""
    config = dataclasses.replace(config, checkpoints=CheckpointConfig(folder=str(tmp_path / "elsewhere")))
    step, refusals = loop.train_step, []

    def start_others(*args, **kwargs):
        monkeypatch.setattr(loop, "train_step", step)
        for out in (config.out, tmp_path / "other"):
            with pytest.raises(ValueError, match="is in use by process") as error:
                run(dataclasses.replace(config, out=out))
            refusals.append(str(error.value))
        return step(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", start_others)
    run(config)
    assert "run is in use" in refusals[0] and "elsewhere is in use" in refusals[1]
    assert log_lines(config.out)[-1]["step"] == 12 and not (tmp_path / "other").exists()


def test_resuming_with_an_empty_checkpoint_folder_is_refused(config, tmp_path):
    """An empty folder of checkpoints would begin the run anew and drop its metrics."""
    run(config)
    before = log_lines(config.out)
    with pytest.raises(ValueError, match=r"lie in .*run/steps, and .*bucket/steps holds none: move"):
        run(dataclasses.replace(config, checkpoints=CheckpointConfig(folder=str(tmp_path / "bucket"))))
    assert log_lines(config.out) == before


def test_folder_that_is_a_file_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=r"file is a file, expected a folder"):
            run(dataclasses.replace(config, out=out))


def test_checkpoint_folder_that_cannot_be_made_is_refused(config):
    """Root may write in /proc, says the system, but nobody can."""
    with pytest.raises(ValueError, match=r"/proc.* (not writable|cannot be written to)"):
        run(dataclasses.replace(config, checkpoints=CheckpointConfig(folder="/proc/nowhere")))


def test_checkpoint_folder_in_a_file_is_refused_first(config, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(launch, "prepare", lambda *arguments: pytest.fail("weights were prepared first"))
    with pytest.raises(ValueError, match=r"--checkpoints.folder .*file/kept: .*file is a file, expected a folder"):
        run(dataclasses.replace(config, checkpoints=CheckpointConfig(folder=str(tmp_path / "file" / "kept"))))


def test_refused_change_leaves_the_description(config):
    """A start that is refused after all does not turn the command that began the run away."""
    run(config)
    with pytest.raises(ValueError, match="has made 12 steps, more than --n-steps 6"):
        run(dataclasses.replace(config, n_steps=6, changed=True))
    run(config)


def test_run_killed_before_its_description_resumes(config):
    """A run that was killed early leaves a lock that nobody holds, and an empty folder of checkpoints."""
    (config.out / "steps").mkdir(parents=True)
    (config.out / "lock").write_text("process 1 on nowhere")
    (config.out / "config.json.new").write_text("{")
    run(config)
    assert log_lines(config.out)[-1]["step"] == 12


def test_damaged_files_of_a_run_are_named_or_left_out(config):
    run(dataclasses.replace(config, n_steps=3))
    log = log_lines(config.out)
    with (config.out / "metrics.jsonl").open("ab") as file:
        file.write(b"\0\0\0\n[]\n" + b"[" * 100_000 + b'\n{"step": 4, "lo')  # what a crash of the machine leaves
    run(dataclasses.replace(config, n_steps=3))
    assert log_lines(config.out) == log
    for damage in (b"[", b"\xff", b"[" * 100_000):
        (config.out / "skipped.json").write_bytes(damage)
        with pytest.raises(ValueError, match=r"skipped\.json is damaged: expected \[\[step, batches\]"):
            run(dataclasses.replace(config, n_steps=3))
    (config.out / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json is damaged: expected an object"):
        run(dataclasses.replace(config, n_steps=3))


def test_foreign_files_beside_checkpoints_do_no_harm(config):
    run(dataclasses.replace(config, n_steps=6, checkpoints=CheckpointConfig(last=1)))
    steps = config.out / "steps"
    (steps / "abc").write_text("")
    (steps / "30").mkdir()  # of a copy that was broken off
    trained = params(steps / "6")
    assert same(params(config.out), trained)
    run(dataclasses.replace(config, n_steps=6))
    assert same(params(config.out), trained) and (config.out / "damaged" / "30").is_dir()


def test_other_training_data_is_refused(config, tmp_path, source_text):
    """The text, or the shards, were exchanged behind the same name."""
    text = tmp_path / "text.txt"
    text.write_text(source_text)
    data = dataclasses.replace(config.data, source=str(text))
    config = dataclasses.replace(config, data=data, n_steps=6)
    run(config)
    shutil.rmtree(config.out / "steps" / "6")
    text.write_text(source_text.replace("self", "this"))
    with pytest.raises(ValueError, match="steps/3 holds a run with other settings .training data: [0-9a-f]* there, "):
        run(config)
    run(dataclasses.replace(config, changed=True))
    assert log_lines(config.out)[-1]["step"] == 6


def test_fewer_steps_than_made_are_refused(config):
    run(dataclasses.replace(config, n_steps=6))
    with pytest.raises(ValueError, match="run has made 6 steps, more than --n-steps 4"):
        run(dataclasses.replace(config, n_steps=4, changed=True))


def test_run_folder_inside_its_text_is_refused(config, tmp_path, source_text):
    """A run inside its text would train on its own files at the next start."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "text.txt").write_text(source_text)
    data = dataclasses.replace(config.data, source=str(tmp_path / "project"))
    with pytest.raises(ValueError, match="runs/x lies in the training text, .*project: choose another folder"):
        run(dataclasses.replace(config, data=data, out=tmp_path / "project" / "runs" / "x"))
