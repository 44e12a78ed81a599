"""What may happen to a run, done to it for real: kills at any moment, damage, a full disk, loss spikes."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upalm.checkpoints.arrays import checksums, to_arrays
from upalm.checkpoints.folder import load_model
from upalm.checkpoints.manager import Checkpoints
from upalm.data import shards, sources
from upalm.data.config import DataConfig
from upalm.data.loader import Loader
from upalm.data.tokenizer import SentencePiece
from upalm.data.tokens import encode
from upalm.distributed.chips import Chip
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder
from upalm.training import loop
from upalm.training import step as step_module
from upalm.training import step as train
from upalm.training.config import CheckpointConfig, LoggingConfig, Scratch, TrainConfig
from upalm.training.launch import rerun, run
from upalm.training.metrics import OF_THE_MACHINE, read
from upalm.training.optim import Adafactor, Schedule
from upalm.training.spikes import LossSpike, SpikeConfig, SpikeDetector

MODEL = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=2, d_head=16, d_ff=64, seq_len=64)


@pytest.fixture(scope="module")
def data(tmp_path_factory, tokenizer, source_text):
    folder = tmp_path_factory.mktemp("texts")
    for i in range(0, len(source_text), 3000):
        (folder / f"{i}.txt").write_text(source_text[i : i + 3000])
    built = tmp_path_factory.mktemp("built") / "data"
    shards.build(str(folder), str(built), tokenizer)
    return str(built)


@pytest.fixture
def config(tmp_path, data):
    return TrainConfig(
        out=tmp_path / "run",
        start=Scratch(MODEL),
        data=DataConfig(data, seq_len=64, batch_size=4, joint_budget=True),
        optimizer=Adafactor(Schedule("cosine", peak=1e-2, final=1e-4)),
        n_steps=12,
        log_every=1,
        save_every=3,
        eval_every=6,
        eval_batches=1,
    )


def params(folder):
    return to_arrays(load_model(folder)[0])


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def lines(folder):
    return [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in read(folder / "metrics.jsonl")]


# --- Kills ---

_STARTER = """
import json, os, sys
from pathlib import Path
from upalm import loop
from upalm.checkpoint import Checkpoints
from upalm.run import run
from upalm.settings import from_json
from upalm.train import TrainConfig

def says(what, function):
    def wrapped(*args, **kwargs):
        print(what, flush=True)
        return function(*args, **kwargs)
    return wrapped

loop.train_step = says("step", loop.train_step)
Checkpoints.save = says("save", Checkpoints.save)
for line in sys.stdin:  # all is imported, nothing of JAX has begun
    child = os.fork()
    if not child:
        print(os.getpid(), flush=True)
        run(from_json(TrainConfig, json.loads(Path(sys.argv[1]).read_text())))
        print("end", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


@pytest.mark.slow
def test_sigkill_at_20_random_moments_changes_nothing(config, tmp_path):
    """Also inside a save, which goes on in the background: there is one every other step."""
    from upalm.training.config import to_json

    config = dataclasses.replace(config, n_steps=60, save_every=2, eval_every=20)
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    run(whole)
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    env = os.environ | {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    words = [sys.executable, "-c", _STARTER, tmp_path / "config.json"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    rng, killed, saves = random.Random(0), 0, 0
    with subprocess.Popen(words, env=env, text=True, **pipes) as starter:
        while killed < 20:
            starter.stdin.write("start\n")
            starter.stdin.flush()
            child, said = int(starter.stdout.readline()), ""
            wanted, n = rng.choice(["step", "save"]), rng.randrange(1, 6)
            while n and said not in ("end", "gone"):
                said = starter.stdout.readline().strip()
                n -= said == wanted
            assert n == 0, "it came to its end"
            os.kill(child, signal.SIGKILL)
            saves += wanted == "save"
            killed += 1
            while starter.stdout.readline().strip() != "gone":
                pass
        starter.stdin.close()
    assert killed == 20 and saves > 4
    run(config)
    assert same(params(config.out), params(whole.out))
    assert lines(config.out) == lines(whole.out)


# --- Damage ---


def damage(step: Path, how: str) -> None:
    files = [p for p in (step / "model").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    if how == "truncated":
        os.truncate(largest, largest.stat().st_size // 2)
    elif how == "flipped":
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    elif how == "a file is missing":
        largest.unlink()
    elif how == "not described":
        (step / "about" / "metadata").write_text("{")


@pytest.mark.parametrize("how", ["truncated", "flipped", "a file is missing", "not described"])
def test_a_damaged_checkpoint_is_named_and_passed_over(config, capsys, how):
    run(config)
    whole, log = params(config.out), lines(config.out)
    damage(config.out / "steps" / "12", how)
    found, _ = load_model(config.out)
    assert "passing over checkpoint 12 for the one before" in capsys.readouterr().err
    assert not same(to_arrays(found), whole)  # of step 9
    run(config)
    said = capsys.readouterr().err
    assert "steps/12" in said and "passing over checkpoint 12" in said
    assert same(params(config.out), whole)
    assert lines(config.out) == log
    assert (config.out / "damaged" / "12").is_dir()
    for step in (9, 12):
        damage(config.out / "steps" / str(step), how)
    with pytest.raises(ValueError, match="none of the 2 checkpoints .* can be read"):
        run(config)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 23), st.integers(0, 31))
def test_a_flipped_bit_changes_the_checksum(place, bit):
    array = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    before = checksums({"x": jnp.asarray(array)})["x"]
    array.view(np.uint32).reshape(-1)[place] ^= np.uint32(1 << bit)
    assert checksums({"x": jnp.asarray(array)})["x"] != before


def test_exchanged_numbers_change_the_checksum_and_a_layout_does_not():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    found = {name: int(v) for name, v in checksums({"a": jnp.asarray(array), "b": jnp.asarray(array[::-1])}).items()}
    assert found["a"] != found["b"]
    with np.errstate(over="ignore"):
        rows, columns = np.indices((4, 6), dtype=np.uint32)
        place = rows * np.uint32(0x9E3779B1) + columns
        expected = (array.view(np.uint32) * (2 * place + 1)).sum(dtype=np.uint32)
    assert found["a"] == expected


_FULL = """
import json, sys
from pathlib import Path
from upalm.cli.main import main
sys.argv = ["upalm", "run", "--from", sys.argv[1]]
main()
"""


@pytest.mark.slow
def test_a_full_disk_ends_with_an_error_and_the_last_checkpoint_whole(config, tmp_path):
    """A file system of its own, too small for a third checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here: that needs root on Linux")
    try:
        model = dataclasses.replace(MODEL, d_model=64, d_ff=256)
        config = dataclasses.replace(
            config, out=disk / "run", start=Scratch(model), checkpoints=CheckpointConfig(last=10), n_steps=30
        )
        with pytest.raises(OSError, match=r"could not be written \(.*\); the last good one is .*/steps/\d+\.") as said:
            run(config)
        kept = Checkpoints(config.out)
        steps = kept.steps()
        assert steps and f"steps/{steps[0]}." in str(said.value)
        kept.close()
        load_model(config.out)
        subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
        run(config)
        plain = dataclasses.replace(config, out=tmp_path / "plain", checkpoints=CheckpointConfig())
        run(plain)
        assert same(params(config.out), params(plain.out))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- SpikeConfig ---


def test_what_counts_as_a_spike():
    watch = SpikeDetector(SpikeConfig(threshold=1.0, window=8))
    for step in range(8):
        watch(step, 3.0 + 0.1 * step, 1.0)
    watch(8, 4.2, 1.0)
    with pytest.raises(LossSpike, match="loss 4.6.*usual loss 3.45.* at step 9"):
        watch(9, 4.6, 1.0)
    for loss, norm in ((float("nan"), 1.0), (3.0, float("inf"))):
        with pytest.raises(LossSpike):
            SpikeDetector(SpikeConfig())(1, loss, norm)
    SpikeDetector(SpikeConfig())(1, 1e9, 1.0)  # without a threshold, nothing but what is not finite


@pytest.fixture
def spoiled(monkeypatch):
    """Rows 28 to 31, which are batch 7, have an infinite weight."""
    made = Loader.batch

    def batch(self, step):
        found = made(self, step)
        if self.first_row(step) == 28:
            found.loss_weights[:] = np.inf
        return found

    monkeypatch.setattr(Loader, "batch", batch)


def test_a_spike_stops_the_run_and_says_where(config, spoiled):
    with pytest.raises(FloatingPointError, match=r"at step 8 \(batch 7, rows from 28\) .*last good.*steps/6"):
        run(config)
    assert all(row["step"] < 8 for row in lines(config.out))


def test_palms_remedy_goes_back_and_skips(config, spoiled, tmp_path):
    """A spike at step 8: back to step 3, leaving out 3 batches, so that step 4 takes batch 6, and batch 7 is next."""
    remedy = SpikeConfig(remedy="rewind", rewind_steps=4, skip_batches=6)
    config = dataclasses.replace(config, spikes=remedy, checkpoints=CheckpointConfig(last=10))
    run(config)
    rows = lines(config.out)
    [event] = [row for row in rows if "event" in row]
    assert event == {"step": 3, "event": "rewind", "spike_step": 8, "spike_loss": "nan", "skipped_batches": 6}
    assert json.loads((config.out / "skipped.json").read_text()) == [[3, 6]]
    losses = [row["step"] for row in rows if "loss" in row]
    assert losses == list(range(1, 13))
    assert (config.out / "before_rewind" / "6").is_dir()

    # the same as a run that has left these batches out from the start
    plain = dataclasses.replace(config, out=tmp_path / "plain")
    plain.out.mkdir()
    (plain.out / "skipped.json").write_text("[[3, 6]]")
    shutil.copy(config.out / "config.json", plain.out / "config.json")
    run(plain)
    assert same(params(config.out), params(plain.out))


def test_the_remedy_needs_an_earlier_checkpoint_and_has_an_end(config, spoiled, tmp_path):
    far = dataclasses.replace(config, spikes=SpikeConfig(remedy="rewind", rewind_steps=8), out=tmp_path / "far")
    with pytest.raises(FloatingPointError, match="None is 8 steps before: save more often and keep more"):
        run(far)
    short = SpikeConfig(remedy="rewind", rewind_steps=4, skip_batches=1, most=1)
    with pytest.raises(FloatingPointError, match="at step 7 .*Batches were skipped 1 times already"):
        run(dataclasses.replace(config, spikes=short, checkpoints=CheckpointConfig(last=10)))


# --- What is kept, and what the engineer sees ---


def test_newest_and_every_nth_checkpoint_are_kept(config):
    run(dataclasses.replace(config, save_every=1, checkpoints=CheckpointConfig(last=2, every=5)))
    assert sorted(int(p.name) for p in (config.out / "steps").iterdir()) == [5, 10, 11, 12]


def test_checkpoints_by_the_clock(config, monkeypatch):
    now = iter(range(0, 10**6, 40))  # every look at the clock is 40 seconds later
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(now))
    run(
        dataclasses.replace(
            config, save_every=1000, eval_every=1000, checkpoints=CheckpointConfig(last=100, minutes=10.0)
        )
    )
    assert len(list((config.out / "steps").iterdir())) > 1


def test_a_folder_of_checkpoints_of_its_own(config, tmp_path):
    run(dataclasses.replace(config, checkpoints=CheckpointConfig(folder=str(tmp_path / "elsewhere"))))
    assert (tmp_path / "elsewhere" / "steps" / "12").is_dir()
    assert not (config.out / "steps").exists()


@pytest.mark.skipif(
    "UPALM_TEST_BUCKET" not in os.environ, reason="UPALM_TEST_BUCKET=gs://... names a bucket to write to"
)
def test_checkpoints_in_a_bucket(config, tmp_path):
    """Written to and read from an object store; the folder of the run may be lost."""
    folder = f"{os.environ['UPALM_TEST_BUCKET']}/{tmp_path.name}-{os.getpid()}"
    config = dataclasses.replace(config, n_steps=6, checkpoints=CheckpointConfig(folder=folder))
    run(config)
    plain = dataclasses.replace(config, out=tmp_path / "plain", checkpoints=CheckpointConfig())
    run(plain)
    shutil.rmtree(config.out)
    with pytest.raises(ValueError, match="n_steps: 6 there, 7 here"):
        run(dataclasses.replace(config, n_steps=7))
    there = Checkpoints(folder)
    assert there.steps() == [6, 3]
    found = there.restore("model", load_model(plain.out)[0])
    there.close()
    assert same(to_arrays(found), params(plain.out))


def test_changed_settings_are_shown_and_refused_unless_told(config, capsys):
    run(dataclasses.replace(config, n_steps=6))
    with pytest.raises(ValueError, match="n_steps: 6 there, 12 here.*--changed"):
        run(config)
    run(dataclasses.replace(config, changed=True))
    assert "going on with other settings: n_steps: 6 there, 12 here" in capsys.readouterr().err
    assert lines(config.out)[-1]["step"] == 12


def test_checkpoints_know_the_settings_without_the_folder(config, tmp_path):
    """On a new machine, whose disk has no config.json."""
    elsewhere = CheckpointConfig(folder=str(tmp_path / "bucket"))
    run(dataclasses.replace(config, checkpoints=elsewhere, n_steps=6))
    shutil.rmtree(config.out)
    with pytest.raises(ValueError, match="n_steps: 6 there, 12 here"):
        run(dataclasses.replace(config, checkpoints=elsewhere))


def test_another_tokenizer_is_refused(config, tmp_path, source_text):
    """As where the shards were built anew in the same place."""
    run(config)
    other = SentencePiece.train([source_text[:50_000]], 512)
    tokens = encode(other, [sources.Document("a", source_text)])
    with pytest.raises(ValueError, match="was trained with tokenizer .* this run has"):
        loop.fit(config, Decoder(MODEL, key=jax.random.key(0)), other, tokens, tokens)


def test_a_run_folder_repeats_itself(config, tmp_path, monkeypatch):
    from upalm.cli import main as cli

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


def test_metrics_say_what_an_engineer_asks(config, monkeypatch):
    monkeypatch.setattr(loop, "chip_of", lambda kind: Chip("test", flops=1e12))
    run(config)
    row = next(r for r in read(config.out / "metrics.jsonl") if r["step"] == 12 and "loss" in r)
    seen = {key for r in read(config.out / "metrics.jsonl") for key in r}
    assert {"loss", "loss_r", "loss_x", "loss_s", "grad_norm", "learning_rate", "validation_loss"} <= seen
    assert {"tokens_per_second", "mfu", "data_wait", "checkpoint_seconds", "memory_gb"} <= row.keys()
    flops = 6 * MODEL.n_params + 12 * 2 * 2 * 16 * 64
    assert row["mfu"] == pytest.approx(row["tokens_per_second"] * flops / 1e12 / len(jax.devices()), rel=1e-4)
    assert 0 <= row["data_wait"] < 1 and row["checkpoint_seconds"] > 0 and row["memory_gb"] > 0.05


def test_an_unknown_chip_has_no_mfu(config):
    run(dataclasses.replace(config, n_steps=3))
    assert [r["mfu"] for r in read(config.out / "metrics.jsonl") if "mfu" in r] == [None, None]


def test_tensorboard_has_the_same_numbers(config):
    pytest.importorskip("tensorboardX", reason="tensorboardX is absent: pip install '.[loggers]'")
    from tensorboardX.event_file_writer import EventsWriter  # noqa: F401
    from tensorboardX.proto.event_pb2 import Event

    run(dataclasses.replace(config, n_steps=3, logging=LoggingConfig(writers=("tensorboard",))))
    [path] = (config.out / "tensorboard").iterdir()
    content, found = path.read_bytes(), {}
    while content:  # records: length, its checksum, the event, its checksum
        n = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + n])
        found |= {(event.step, v.tag): v.simple_value for v in event.summary.value}
        content = content[16 + n :]
    for row in lines(config.out):
        for name in {"loss", "grad_norm", "validation_loss"} & row.keys():
            assert found[row["step"], name] == pytest.approx(row[name], rel=1e-6)


@pytest.mark.slow
def test_weights_and_biases_offline(config, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is absent: pip install '.[loggers]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(dataclasses.replace(config, n_steps=3, logging=LoggingConfig(writers=("wandb",))))
    assert list((config.out / "wandb").glob("offline-run-*/*.wandb"))


def test_a_profile_of_some_steps(config):
    run(dataclasses.replace(config, n_steps=4, logging=LoggingConfig(profile=(2, 3))))
    assert list((config.out / "profile").rglob("*.xplane.pb"))


def test_the_step_of_before_is_read_while_this_one_runs(config, monkeypatch):
    """Else the device would wait for the host. The order of dispatching (d) and reading (r):"""
    order, real_step, real_get = [], step_module.train_step, jax.device_get
    monkeypatch.setattr(loop, "train_step", lambda *a, **k: order.append("d") or real_step(*a, **k))

    def get(x):
        if isinstance(x, train.StepMetrics):
            order.append("r")
        return real_get(x)

    monkeypatch.setattr(loop.jax, "device_get", get)
    run(dataclasses.replace(config, n_steps=6, save_every=6, eval_every=100))
    assert "".join(order) == "ddrdrdrdrdrr"


def test_a_model_of_another_size_is_refused(config):
    run(config)
    other = dataclasses.replace(config, start=Scratch(dataclasses.replace(MODEL, d_ff=128)))
    with pytest.raises(ValueError, match="start.model.d_ff: 64 there, 128 here"):
        run(other)
    checkpoints = Checkpoints(config.out)
    with pytest.raises(ValueError, match="of another model"):
        checkpoints.restore("model", Decoder(other.start.model, key=jax.random.key(0)))
    checkpoints.close()
