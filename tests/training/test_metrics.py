"""Metrics in metrics.jsonl, TensorBoard and W&B."""

import dataclasses

import pytest
from support.runs import log_lines

from upalm.training import launch
from upalm.training.config import LoggingConfig
from upalm.training.launch import run
from upalm.training.metrics import Metrics, TensorBoard, read


def test_tensorboard_has_the_same_numbers(config):
    pytest.importorskip("tensorboardX", reason="tensorboardX is absent: pip install '.[loggers]'")
    from tensorboardX.proto.event_pb2 import Event

    run(dataclasses.replace(config, n_steps=3, logging=LoggingConfig(writers=("tensorboard",))))
    [path] = (config.out / "tensorboard").iterdir()
    content, written = path.read_bytes(), {}
    while content:  # records: length, its checksum, the event, its checksum
        n = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + n])
        written |= {(event.step, v.tag): v.simple_value for v in event.summary.value}
        content = content[16 + n :]
    for row in log_lines(config.out):
        for name in {"loss", "grad_norm", "validation_loss"} & row.keys():
            assert written[row["step"], name] == pytest.approx(row[name], rel=1e-6)


def test_writer_that_is_not_installed_is_refused_first(config, monkeypatch):
    monkeypatch.setattr(TensorBoard, "PACKAGE", "upalm_without_such_a_package")
    monkeypatch.setattr(launch, "prepare", lambda *arguments: pytest.fail("weights were prepared first"))
    with pytest.raises(ValueError, match=r"--logging.writers tensorboard needs: pip install 'upalm\[loggers\]'"):
        run(dataclasses.replace(config, logging=LoggingConfig(writers=("tensorboard",))))


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
