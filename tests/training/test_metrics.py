"""Metrics in metrics.jsonl, TensorBoard and W&B."""

import dataclasses
from pathlib import Path

import pytest
from support.runs import log_lines

from upalm.training import launch
from upalm.training.config import LoggingConfig
from upalm.training.launch import run
from upalm.training.metrics import Metrics, TensorBoard, read


def test_tensorboard_has_the_same_numbers(config):
    pytest.importorskip("tensorboardX", reason="tensorboardX is absent: pip install '.[loggers]'")
    run(dataclasses.replace(config, n_steps=3, logging=LoggingConfig(writers=("tensorboard",))))
    written = {(step, tag): value for step, tag, value in points(config.out)}
    for row in log_lines(config.out):
        for name in {"loss", "grad_norm", "validation_loss"} & row.keys():
            assert written[row["step"], name] == pytest.approx(row[name], rel=1e-6)


def test_writer_that_is_not_installed_is_refused_first(config, monkeypatch):
    monkeypatch.setattr(TensorBoard, "PACKAGE", "upalm_without_such_a_package")
    monkeypatch.setattr(launch, "prepare", lambda *arguments: pytest.fail("weights were prepared first"))
    with pytest.raises(ValueError, match=r"--logging.writers tensorboard needs: pip install 'upalm\[loggers\]'"):
        run(dataclasses.replace(config, logging=LoggingConfig(writers=("tensorboard",))))


def points(out: Path) -> list[tuple[int, str, float]]:
    """Points that TensorBoard shows: those at or after the step of a session's start are dropped there."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    shown = []
    for path in sorted((out / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:  # records: length, its checksum, the event, its checksum
            n = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + n])
            if event.session_log.status == SessionLog.START:
                shown = [point for point in shown if point[0] < event.step]
            shown += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            content = content[16 + n :]
    return shown


def write_with_rewind(out: Path, writer: str) -> None:
    """Four losses; after a rewind to step 2, two others."""
    log = Metrics(out / "metrics.jsonl", 0, [writer])
    for step in range(1, 5):
        log.write(step, {"loss": step / 8})
    log.rewind(2)
    for step in range(3, 5):
        log.write(step, {"loss": step / 64})
    log.close()


def test_tensorboard_drops_points_after_a_rewind(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is absent: pip install '.[loggers]'")
    write_with_rewind(tmp_path, "tensorboard")
    assert points(tmp_path) == [(s, "loss", x) for s, x in ((1, 1 / 8), (2, 2 / 8), (3, 3 / 64), (4, 4 / 64))]


def test_tensorboard_drops_points_after_the_step_of_a_resume(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is absent: pip install '.[loggers]'")
    write_with_rewind(tmp_path, "tensorboard")
    [first] = (tmp_path / "tensorboard").iterdir()
    first.rename(first.with_name("events.out.tfevents.1"))  # a new file of the same second would replace it
    Metrics(tmp_path / "metrics.jsonl", 1, ["tensorboard"]).close()
    assert points(tmp_path) == [(1, "loss", 1 / 8)]


@pytest.mark.slow
def test_weights_and_biases_takes_metrics_after_a_rewind(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is absent: pip install '.[loggers]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_with_rewind(tmp_path, "wandb")
    wandb.teardown()  # its files are whole only then
    [path] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    content = path.read_bytes()
    for loss in (1 / 8, 2 / 8, 3 / 8, 4 / 8, 3 / 64, 4 / 64):
        assert str(loss).encode() in content


@pytest.mark.slow
def test_weights_and_biases_offline(config, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is absent: pip install '.[loggers]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(dataclasses.replace(config, n_steps=3, logging=LoggingConfig(writers=("wandb",))))
    assert list((config.out / "wandb").glob("offline-run-*/*.wandb"))


def test_rewind_drops_later_lines_and_keeps_events(tmp_path):
    log = Metrics(tmp_path / "metrics.jsonl", 0)
    for step in range(1, 5):
        log.write(step, {"loss": step / 3})
    log.write(4, {"event": "rewind"})
    log.rewind(2)
    log.close()
    assert [row["step"] for row in read(tmp_path / "metrics.jsonl")] == [1, 2, 4]
    (tmp_path / "metrics.jsonl").open("a").write('{"step": 3, "lo')  # killed while writing
    Metrics(tmp_path / "metrics.jsonl", 2).close()
    assert [row["step"] for row in read(tmp_path / "metrics.jsonl")] == [1, 2, 4]
