"""`fit` as a whole: loss curves, checkpoints on time, and resuming bit for bit after any interruption."""

import contextlib
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
import numpy as np
import pytest
from support.runs import MODEL, log_lines, params, same, steps_of

from upalm.checkpoints.arrays import to_arrays
from upalm.checkpoints.folder import load_model
from upalm.checkpoints.lineage import Stage, stages
from upalm.checkpoints.manager import Checkpoints
from upalm.data.tokenizer import SentencePiece
from upalm.data.tokens import Tokens
from upalm.model.palm import Decoder
from upalm.training import loop, step
from upalm.training.config import CheckpointConfig, Continue, Scratch, to_json
from upalm.training.launch import rerun, run
from upalm.training.loop import Interrupted
from upalm.training.optim import Adafactor, AdamW, Schedule

FORKED_RUNS = Path(__file__).parents[1] / "support" / "forked_runs.py"
LICENSE = Path(__file__).parents[2] / "LICENSE"
PALMS = Adafactor(Schedule(peak=1e-2))
GOLDEN_LOSSES = [
    *(6.67447, 6.53048, 6.65856, 6.72643, 6.59159, 6.70443, 6.5388, 6.57206, 6.58896, 6.66134),
    *(6.51594, 6.37154, 6.52576, 6.29048, 6.42238, 6.3985, 6.36118, 6.01378, 6.30382, 6.32038),
]
GOLDEN_VALIDATION = {10: 6.33872, 20: 6.06095}


def fit(config, tokenizer, tokens, model=None):
    model = Decoder(MODEL, key=jax.random.key(0)) if model is None else model
    return loop.fit(config, model, tokenizer, tokens, tokens)


# --- The loss curve ---


def test_loss_curve_of_20_steps_is_golden(config):
    """A change that should not alter numerics must not alter these losses; else regenerate them and say so."""
    tokenizer = SentencePiece.train([LICENSE.read_text()], 512)  # the same text under every version of Python
    rng = np.random.default_rng(0)
    documents = [(np.cumsum(rng.integers(1, 4, 300)) % 100 + 150).tolist() for _ in range(20)]
    config = dataclasses.replace(config, n_steps=20, accumulation=2, save_every=100, eval_every=10)
    fit(config, tokenizer, Tokens.from_documents(documents))
    rows = log_lines(config.out)
    assert [row["loss"] for row in rows if "loss" in row] == pytest.approx(GOLDEN_LOSSES, rel=1e-4)
    validation = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    assert validation == pytest.approx(GOLDEN_VALIDATION, rel=1e-4)


def test_loss_falls(config, tokenizer, tokens):
    fit(dataclasses.replace(config, n_steps=60, save_every=60, eval_every=60), tokenizer, tokens)
    losses = [row["loss"] for row in log_lines(config.out) if "loss" in row]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.7


def test_step_compiles_once(config, tokenizer, tokens):
    """A weakly typed parameter, which comes back strongly typed, made it compile again at the second step."""
    before = step.train_step._cache_size()
    fit(dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=3)), tokenizer, tokens)
    assert step.train_step._cache_size() == before + 1


def test_metrics_are_read_while_the_next_step_runs(config, monkeypatch):
    """The device need not wait for the host. The order of dispatching (d) and reading (r):"""
    order, real_step, real_get = [], step.train_step, jax.device_get
    monkeypatch.setattr(loop, "train_step", lambda *a, **k: order.append("d") or real_step(*a, **k))

    def get(x):
        if isinstance(x, step.StepMetrics):
            order.append("r")
        return real_get(x)

    monkeypatch.setattr(jax, "device_get", get)
    run(dataclasses.replace(config, n_steps=6, save_every=6, eval_every=100))
    assert "".join(order) == "ddrdrdrdrdrr"


# --- Interruptions ---


@pytest.mark.parametrize("optimizer", [PALMS, dataclasses.replace(PALMS, factored=True), AdamW(Schedule(peak=1e-3))])
def test_resumed_is_uninterrupted_bit_for_bit(config, tokenizer, tokens, optimizer, tmp_path, monkeypatch):
    config = dataclasses.replace(config, optimizer=optimizer)
    whole = to_arrays(fit(config, tokenizer, tokens))

    broken = dataclasses.replace(config, out=tmp_path / "broken")
    real, calls = step.train_step, []

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", stopping)
    with pytest.raises(Interrupted, match="saved after step 5 in .*broken; the same command resumes the run"):
        fit(broken, tokenizer, tokens)
    monkeypatch.setattr(loop, "train_step", real)
    assert same(to_arrays(fit(broken, tokenizer, tokens)), whole)
    assert log_lines(config.out) == log_lines(broken.out)
    assert same(params(broken.out), whole)


@pytest.mark.slow
def test_sigkill_at_20_random_moments_changes_nothing(config, tmp_path):
    """Kills also fall into saves, which continue in the background: there is one every other step."""
    config = dataclasses.replace(config, n_steps=60, save_every=2, eval_every=20)
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    run(whole)
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    env = os.environ | {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    rng, n_saves = random.Random(0), 0
    with subprocess.Popen([sys.executable, FORKED_RUNS, tmp_path / "config.json"], env=env, text=True, **pipes) as runs:
        for _ in range(20):
            awaited = rng.choice(["step", "save"])
            kill_after(runs, awaited, rng.randrange(1, 6))
            n_saves += awaited == "save"
        runs.stdin.close()
    assert n_saves > 4
    run(config)
    assert same(params(config.out), params(whole.out))
    assert log_lines(config.out) == log_lines(whole.out)


def kill_after(runs, awaited, n):
    """Start a run of `forked_runs.py`, and kill it when it announces its n-th step or save."""
    runs.stdin.write("start\n")
    runs.stdin.flush()
    child, message = int(runs.stdout.readline()), ""
    while n and message not in ("end", "gone"):
        message = runs.stdout.readline().strip()
        n -= message == awaited
    assert n == 0, "the run ended before it was killed"
    os.kill(child, signal.SIGKILL)
    while runs.stdout.readline().strip() != "gone":
        pass


@pytest.mark.slow
def test_full_disk_ends_with_the_last_checkpoint_whole(config, tmp_path):
    """A file system of its own, too small for a third checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here: that needs root on Linux")
    try:
        model = dataclasses.replace(MODEL, d_model=64, d_ff=256)
        kept = CheckpointConfig(last=10)
        config = dataclasses.replace(config, out=disk / "run", start=Scratch(model), checkpoints=kept, n_steps=30)
        with pytest.raises(OSError, match=r"could not be written \(.*\); the last good one is .*/steps/\d+\.") as error:
            run(config)
        assert f"steps/{steps_of(config.out)[-1]}." in str(error.value)
        load_model(config.out)
        subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
        run(config)
        plain = dataclasses.replace(config, out=tmp_path / "plain", checkpoints=CheckpointConfig())
        run(plain)
        assert same(params(config.out), params(plain.out))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- When and where checkpoints are written ---


def test_newest_and_every_nth_checkpoint_are_kept(config):
    run(dataclasses.replace(config, save_every=1, checkpoints=CheckpointConfig(last=2, every=5)))
    assert steps_of(config.out) == [5, 10, 11, 12]


def test_checkpoints_by_the_clock(config, monkeypatch):
    now = iter(map(float, range(0, 10**6, 40)))  # every look at the clock is 40 seconds later
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(now))
    by_clock = CheckpointConfig(last=100, minutes=10.0)
    run(dataclasses.replace(config, save_every=1000, eval_every=1000, checkpoints=by_clock))
    assert len(steps_of(config.out)) > 1


def test_checkpoints_elsewhere_open_and_resume_by_either_folder(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(config, checkpoints=CheckpointConfig(folder="elsewhere"))  # relative to here
    run(config)
    monkeypatch.chdir("/")
    assert steps_of(tmp_path / "elsewhere") == [9, 12] and not (config.out / "steps").exists()
    trained = params(config.out)
    assert same(params(tmp_path / "elsewhere"), trained)
    assert not same(params(config.out / "steps" / "9"), trained)
    assert stages(config.out) == stages(tmp_path / "elsewhere") == [Stage("ul2r", 12 * 4 * 64, 0)]
    for folder in (config.out, tmp_path / "elsewhere"):  # continued, and carried to the end
        data = dataclasses.replace(config.data, seq_len=32)
        fork = dataclasses.replace(
            config, out=tmp_path / "fork" / folder.name, start=Continue(folder), data=data, n_steps=2
        )
        run(dataclasses.replace(fork, checkpoints=CheckpointConfig()))
        shutil.rmtree(tmp_path / "elsewhere" / "steps" / "12")
        rerun(folder, {})
        assert same(params(config.out), trained)


@pytest.mark.skipif(
    "UPALM_TEST_BUCKET" not in os.environ, reason="UPALM_TEST_BUCKET=gs://... names a bucket to write to"
)
def test_checkpoints_in_a_bucket(config, tmp_path):
    """Checkpoints go to an object store and come back from it; the folder of the run may be lost."""
    folder = f"{os.environ['UPALM_TEST_BUCKET']}/{tmp_path.name}-{os.getpid()}"
    config = dataclasses.replace(config, n_steps=6, checkpoints=CheckpointConfig(folder=folder))
    run(config)
    plain = dataclasses.replace(config, out=tmp_path / "plain", checkpoints=CheckpointConfig())
    run(plain)
    shutil.rmtree(config.out)
    with pytest.raises(ValueError, match="n_steps: 6 there, 7 here"):
        run(dataclasses.replace(config, n_steps=7))
    checkpoints = Checkpoints(folder)
    assert checkpoints.steps() == [6, 3]
    restored = checkpoints.restore("model", load_model(plain.out)[0])
    checkpoints.close()
    assert same(to_arrays(restored), params(plain.out))


def test_checkpoint_says_how_its_inputs_end(config, tokenizer, tokens):
    fit(dataclasses.replace(config, out=config.out / "plain", n_steps=1), tokenizer, tokens)
    assert not load_model(config.out / "plain").info.inputs_eos
    data = dataclasses.replace(config.data, mixture="ul2r_eos")
    fit(dataclasses.replace(config, out=config.out / "eos", data=data, n_steps=1), tokenizer, tokens)
    assert load_model(config.out / "eos").info.inputs_eos


@pytest.mark.parametrize(("ignored", "n_steps"), [(False, 5), (True, 12)])
def test_hang_up_saves_unless_it_is_ignored(config, monkeypatch, ignored, n_steps):
    """A terminal that is closed sends a hang-up; nohup ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    real, calls = step.train_step, []

    def hung_up(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGHUP)
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", hung_up)
    try:
        with contextlib.nullcontext() if ignored else pytest.raises(Interrupted):
            run(config)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert steps_of(config.out)[-1] == n_steps
