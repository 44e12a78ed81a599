"""The same run on one process and on several; stopping one process, and settings that all must share."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from support.environment import with_devices
from support.pod import Pod, same, wait_for

from upalm.checkpoints import lock
from upalm.data import shards
from upalm.distributed import processes
from upalm.distributed.processes import ProcessConfig

MESHES = {  # processes, replicas, data, model
    "fully sharded": (1, 1, 8, 1),
    "all three axes, four processes": (4, 2, 2, 2),
    "two processes": (2, 1, 4, 2),
    "a model axis over two processes": (2, 1, 1, 8),
}


def mesh(replicas, data, model):
    return ("--mesh.replicas", replicas, "--mesh.data", data, "--mesh.model", model)


def test_error_of_the_disk_is_one_on_all(monkeypatch):
    """Else one process ends, and the others pass over a checkpoint that is whole."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "_gather_text", lambda text: [text, '["OSError", "away"]'])
    with pytest.raises(OSError, match="process 1: away"):
        processes.raise_everywhere(None)


@pytest.fixture(scope="module")
def pod(tmp_path_factory, tokenizer, source_text):
    folder = tmp_path_factory.mktemp("pod")
    (folder / "texts").mkdir()
    for i in range(0, len(source_text), 3000):
        (folder / "texts" / f"{i}.txt").write_text(source_text[i : i + 3000])
    shards.build(str(folder / "texts"), str(folder / "data"), tokenizer)
    return Pod(folder, folder / "data")


@pytest.fixture(scope="module")
def alone(pod):
    """One device."""
    pod.run("alone", devices=1)
    return pod.params("alone"), pod.metrics("alone")


@pytest.fixture(scope="module")
def pair(pod):
    """Two processes, uninterrupted."""
    pod.run("pair", *mesh(1, 4, 2), n=2)
    return pod.params("pair"), pod.metrics("pair")


def close(found, expected):
    for name, array in expected[0].items():
        np.testing.assert_allclose(found[0][name], array, atol=2e-6, err_msg=name)
    assert len(found[1]) == len(expected[1])
    for a, b in zip(found[1], expected[1], strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_losses_and_parameters_are_those_of_one_device(pod, alone, pair, name):
    n, *sizes = MESHES[name]
    if name == "two processes":
        return close(pair, alone)
    out = name.replace(" ", "_")
    pod.run(out, *mesh(*sizes), n=n)
    close((pod.params(out), pod.metrics(out)), alone)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2])
def test_batches_are_the_same_on_every_mesh(pod, n):
    env = with_devices(8 // n)
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [env.get("PYTHONPATH")])])
    port = 20_000 + os.getpid() % 10_000 + n
    words = [sys.executable, "-m", "support.pod_rows", pod.folder / "data", str(port), str(n)]
    started = [subprocess.Popen([*words, str(i)], env=env, text=True, stderr=subprocess.PIPE) for i in range(n)]
    said = [p.communicate(timeout=300)[1] for p in started]
    assert [p.returncode for p in started] == [0] * n, said[0][-3000:]


@pytest.fixture(scope="module")
def broken(pod):
    """One run of two processes, stopped once and killed twice, to its end: what its processes said at each break."""
    words, said = mesh(1, 4, 2), {}
    started = pod.start("broken", *words, "--save-every", 100, n=2)
    wait_for(started[0], "train 1/8")
    started[1].send_signal(signal.SIGTERM)
    said["stopped"] = pod.finish(started, ok=False)
    shutil.copytree(pod.folder / "broken", pod.folder / "moved")
    for killed in (0, 1):
        started = pod.start("broken", *words, "--save-every", 1, n=2)
        wait_for(started[0], "is being written")
        started[killed].kill()
        said[killed] = pod.finish(started, ok=False)
    pod.run("broken", *words, n=2)
    return said


@pytest.mark.slow
def test_sigterm_to_one_process_saves_on_all(pod, pair, broken):
    """SIGTERM announces a preemption. A run resumes to the same bits on its mesh, to the same numbers on another."""
    said = broken["stopped"]
    assert all("saved after step" in x for x in said)
    assert said[0].split("saved after")[1][:7] == said[1].split("saved after")[1][:7]
    [step] = [int(p.name) for p in (pod.folder / "moved" / "steps").iterdir()]
    assert 1 < step < 8
    pod.run("moved", *mesh(1, 8, 1))
    close((pod.params("moved"), pod.metrics("moved")), pair)
    assert same(pod.params("broken"), pair[0])
    assert pod.metrics("broken") == pair[1]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_killed_process_ends_the_others_and_a_restart_resumes(pod, pair, broken, killed):
    survivor = broken[killed][1 - killed]
    assert "lost another process of the run" in survivor or "another task died" in survivor
    assert same(pod.params("broken"), pair[0])
    assert pod.metrics("broken") == pair[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seed", 1), "process 1 has seed 1, process 0 0"),
        (("--save-every", 2), "process 1 has save_every 2, process 0 3"),
        (("--mesh.model", 16), "process 1 has mesh {'class': 'MeshConfig', "),
    ],
)
def test_processes_with_other_settings_are_refused(pod, words, message):
    """One of them would wait for the other forever."""
    said = pod.finish(pod.start("disagree", *mesh(1, 4, 2), n=2, each={1: words}), ok=False)
    assert all(f"the processes disagree: {message}" in x for x in said), said
    assert not (pod.folder / "disagree" / "steps").exists()


@pytest.mark.slow
def test_folder_in_use_is_refused_on_every_process(pod):
    """The first process finds the lock; the other is told, in place of waiting for it."""
    with lock.hold(pod.folder / "held"):
        said = pod.finish(pod.start("held", *mesh(1, 4, 2), n=2), ok=False)
    message = f"held is in use by process {os.getpid()} on"
    assert all(message in x and "Traceback" not in x for x in said), said


# --- On hosts with disks of their own ---


def refused(pod, message, *words, each=None):
    """A start of two processes on disks of their own, which all end with a message and no traceback."""
    said = pod.finish(pod.start("run", *mesh(1, 4, 2), *words, n=2, each=each, apart=True), ok=False)
    assert all(message in x and "Traceback" not in x for x in said), said
    return said


@pytest.mark.slow
def test_error_of_one_process_is_told_to_all(pod):
    """The others would wait for it for minutes, and abort without a reason."""
    (pod.host(0) / "shards").symlink_to(pod.data)
    said = refused(pod, "shards", "--data.source", "shards", "--checkpoints.folder", pod.folder / "kept")
    assert "error: process 1: " in said[0] and "error: process 1: " not in said[1]
    assert not (pod.folder / "kept").exists()


@pytest.mark.slow
def test_hosts_that_share_no_folder_are_refused(pod):
    """Otherwise the hosts would wait for each other at the first checkpoint."""
    refused(pod, "run here is another folder than on process 0: set --checkpoints.folder to a disk")
    assert not any((pod.host(i) / "run").exists() for i in (0, 1))


@pytest.mark.slow
def test_other_training_data_on_one_process_is_refused(pod, tokenizer, source_text):
    (pod.host(1) / "a.txt").write_text(source_text)
    (pod.host(0) / "same").symlink_to(pod.data)
    shards.build(str(pod.host(1) / "a.txt"), str(pod.host(1) / "same"), tokenizer)
    words = ("--data.source", "same", "--checkpoints.folder", pod.folder / "kept")
    refused(pod, "the processes disagree: process 1 has training data", *words)


@pytest.mark.slow
def test_run_folder_of_the_first_process_alone(pod, pair):
    """Whatever it says there, and whatever the first process cannot write there, all processes learn."""
    words = ("--checkpoints.folder", pod.folder / "shared")
    pod.finish(pod.start("run", *mesh(1, 4, 2), *words, n=2, apart=True))
    assert same(pod.params("shared"), pair[0])
    assert not (pod.host(1) / "run").exists()
    message = f"move them there, or resume with --checkpoints.folder {pod.folder / 'shared'}"
    refused(pod, message, "--checkpoints.folder", pod.folder / "empty")
    refused(pod, "cannot be written to", "--checkpoints.folder", "/proc/nowhere")
    log = pod.host(0) / "run" / "metrics.jsonl"
    log.unlink()
    log.mkdir()
    said = pod.finish(pod.start("run", *mesh(1, 4, 2), *words, n=2, apart=True), ok=False)
    assert all("metrics.jsonl" in x for x in said), said


@pytest.mark.slow
def test_later_error_of_one_process_ends_all(pod):
    """The process ends at once, in place of waiting for the others, who wait for it."""
    (pod.host(0) / "damaged").symlink_to(pod.data)
    shutil.copytree(pod.data, pod.host(1) / "damaged")
    for path in (pod.host(1) / "damaged").glob("train*.array_record"):
        path.write_bytes(bytes(path.stat().st_size))  # the manifest is whole
    words = ("--data.source", "damaged", "--checkpoints.folder", pod.folder / "later")
    said = pod.finish(pod.start("later", *mesh(1, 4, 2), *words, n=2, apart=True), ok=False)
    assert "error: process 1" in said[1]


# --- Alone ---


def test_incomplete_process_settings_are_refused():
    for wrong in (
        {"coordinator": "a:1"},
        {"n_processes": 2},
        {"coordinator": "a:1", "n_processes": 2, "process_id": 2},
    ):
        with pytest.raises(ValueError, match="give coordinator HOST:PORT"):
            ProcessConfig(**wrong)
    for name, least in (("n_processes", 0), ("process_id", -1), ("heartbeat_seconds", 1)):
        with pytest.raises(ValueError, match=f"{name} is {least - 1}, expected at least {least}"):
            ProcessConfig(**{name: least - 1})
    ProcessConfig().connect()  # nothing to join
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"}, False),
        ({"SLURM_NTASKS": "4"}, False),  # salloc or sbatch without srun: one process in an allocation of four
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_PROCESS_ADDRESSES": "a:8476,b:8476"}, True),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a"}, True),
    ],
)
def test_clusters_are_detected(monkeypatch, env, found):
    for name in ("SLURM_NTASKS", "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name in ("TPU_PROCESS_ADDRESSES", "MEGASCALE_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert processes._is_cluster() == found


@pytest.mark.parametrize(
    ("chip", "maker", "found"),
    [
        ("accel0", "0x1ae0", True),  # up to v4
        ("vfio/0", "0x1ae0", True),  # v5e, v5p and later
        ("vfio/0", "0x10de", False),  # a GPU that is passed through
        ("vfio/vfio", "0x1ae0", False),  # Google's network card in a virtual machine
    ],
)
def test_tpu_chips_are_found(tmp_path, chip, maker, found):
    for path, text in ((f"dev/{chip}", ""), ("sys/bus/pci/devices/0000:00:04.0/vendor", f"{maker}\n")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert processes._has_tpu(tmp_path) == found


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (ValueError("coordinator_address should be defined."), "JAX finds no others (coordinator_address should be"),
        (ConnectionError("no answer"), "JAX finds no others (no answer)"),
        (RuntimeError("jax.distributed.initialize() must be called before any JAX calls"), ""),
    ],
)
def test_tpu_host_of_no_pod_trains_alone(monkeypatch, capsys, error, note):
    """JAX raises where neither GKE nor the metadata server names hosts; a second run in the process does not ask."""
    calls = []

    def initialize(**_):
        calls.append(1)
        raise error

    monkeypatch.setattr(processes, "_is_cluster", lambda: False)
    monkeypatch.setattr(processes, "_has_tpu", lambda: True)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    processes._join_pod.cache_clear()
    ProcessConfig().connect()
    ProcessConfig().connect()
    processes._join_pod.cache_clear()
    assert calls == [1]
    said = capsys.readouterr().err
    assert note in said and bool(note) == bool(said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mesh.model", 16), "needs 16 devices, there are 8"),
        (("--data.batch-size", 12), "no multiple of the 8 shards of replica x data"),
        (("--accumulation", 4), "4 microbatches has 4 rows each, no multiple of the 8 shards"),
        (
            ("--mesh.model", 8, "--start.model.n-heads", 12, "--start.model.d-head", 36),
            "n_heads 12 and d_head 36: no multiple of the 8 devices",
        ),
        (("--start.model.d-model", 36), "d_model 36: no multiple of the 8 devices"),
    ],
)
def test_meshes_that_do_not_divide_the_run_are_refused(pod, words, message):
    [said] = pod.finish(pod.start("undivided", *words), ok=False)
    assert message in said and "Traceback" not in said
