"""Multi-process runs: connect, compare settings, broadcast stop and save requests."""

import json
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

STOP, SAVE = 1, 2
"""Bits of a request to all processes: save and stop, or save."""

_GOOGLE = "0x1ae0"
"""Number of the maker of TPUs among those of PCI devices."""


@dataclass(frozen=True)
class ProcessConfig:
    """Addresses of a run's processes. TPU pods, GKE, Slurm and Open MPI need none of it."""

    coordinator: str = ""
    """HOST:PORT of process 0, if the cluster does not provide it."""
    n_processes: int = 0
    """Number of processes, with `coordinator`."""
    process_id: int = -1
    """Number of this process, from 0, with `coordinator`."""
    heartbeat_seconds: int = 100
    """Seconds without a sign of life from one process after which the others end."""

    def __post_init__(self):
        for name, least in (("n_processes", 0), ("process_id", -1), ("heartbeat_seconds", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}.")
        given = (bool(self.coordinator), self.n_processes > 0, self.process_id >= 0)
        if any(given) and (not all(given) or self.process_id >= self.n_processes):
            raise ValueError(
                f"{self}: give coordinator HOST:PORT, n_processes, and process_id from 0 to n_processes - 1, or none."
            )

    def connect(self) -> None:
        """Join the other processes, before the first use of JAX's devices; a no-op for a single process.

        Raises:
            ValueError: the processes cannot be joined.
        """
        if jax.distributed.is_initialized():
            return
        given: Any = (self.coordinator, self.n_processes, self.process_id) if self.coordinator else ()
        try:
            if given or _is_cluster():
                jax.distributed.initialize(*given, heartbeat_timeout_seconds=self.heartbeat_seconds)
            elif _has_tpu():
                _join_pod(self.heartbeat_seconds)
        except RuntimeError as e:
            raise ValueError(f"the processes of {self} cannot be joined: {e}") from e


@cache  # since a host that is alone cannot ask again once it has used its devices
def _join_pod(heartbeat_seconds: int) -> None:
    """Join the hosts that Google's metadata server, or GKE, names to JAX; a TPU host of which none knows is alone."""
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_seconds)
    except RuntimeError:  # devices are in use already, and their chips know of each other
        if jax.process_count() > 1:
            raise
    except (ValueError, OSError) as e:  # no cluster, or no answer
        print(f"note: this TPU host trains alone, since JAX finds no others ({e})", file=sys.stderr)


def _is_cluster() -> bool:
    """Whether a cluster manager started several processes; JAX then reads their addresses from it.

    Slurm starts them in a step (`srun`). A command in its allocation alone is one process, whatever SLURM_NTASKS says.
    """
    env = os.environ
    in_step = "SLURM_STEP_NODELIST" in env
    n_processes = max(int(env.get("SLURM_NTASKS", "1")) if in_step else 1, int(env.get("OMPI_COMM_WORLD_SIZE", "1")))
    tpu_hosts = env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES", ""))
    return n_processes > 1 or "," in tpu_hosts or "MEGASCALE_COORDINATOR_ADDRESS" in env


def _has_tpu(root: Path = Path("/")) -> bool:
    """Whether this host has TPU chips, and so may be one of a pod's.

    Chips are /dev/accel0, or from v5e and v5p on /dev/vfio/0, as devices of any maker may be that are passed through.
    """
    vendors = root.glob("sys/bus/pci/devices/*/vendor")
    chips = [*root.glob("dev/accel[0-9]*"), *root.glob("dev/vfio/[0-9]*")]
    return bool(chips) and any(vendor.read_text(encoding="utf-8").strip() == _GOOGLE for vendor in vendors)


def agree(settings: dict[str, Any]) -> None:
    """Compare settings over all processes.

    Raises:
        ValueError: the settings differ. Every process raises it, with the names and values that differ.
    """
    if jax.process_count() == 1:
        return
    everyone = [json.loads(text) for text in _gather_text(json.dumps(settings, sort_keys=True))]
    disagreements = [
        f"process {i} has {name} {other.get(name)!r}, process 0 {everyone[0].get(name)!r}"
        for i, other in enumerate(everyone)
        for name in sorted(everyone[0].keys() | other.keys())
        if other.get(name) != everyone[0].get(name)
    ]
    if disagreements:
        raise _marked(
            ValueError(
                f"the processes disagree: {'; '.join(disagreements)}. Start all with the same command and packages."
            )
        )


def _gather_text(text: str) -> list[str]:
    """The text of every process."""
    encoded = np.frombuffer(text.encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.array([len(encoded)]))).reshape(-1)
    padded = np.pad(encoded, (0, int(lengths.max()) - len(encoded)))
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    return [row[:n].tobytes().decode() for row, n in zip(rows, lengths, strict=True)]


def broadcast_from_first(text: str) -> str:
    """Process 0's text, on every process."""
    return text if jax.process_count() == 1 else _gather_text(text)[0]


def raise_everywhere(error: Exception | None) -> None:
    """Raise on all processes if any has an error, so that none waits for another forever.

    Raises:
        OSError: `error`, or the message of the first process that has one, if that is an OSError.
        ValueError: the same of any other error.
    """
    _tell(error)
    if error is not None:
        raise error


def raising_everywhere() -> ExitStack:
    """Return a context that raises on all processes the error that any has in its block, which holds no collectives.

    Ctrl-C is told to none, as the others get it, too. See `raise_everywhere` for what is raised.
    """
    stack = ExitStack()
    stack.push(_tell_of_block)
    return stack


def _tell_of_block(kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
    if error is None or isinstance(error, Exception):
        _tell(error)


def _tell(error: Exception | None) -> None:
    """Mark an error of this process as told, or raise that of another one."""
    if jax.process_count() > 1:
        kind = OSError if isinstance(error, OSError) else ValueError
        message = "" if error is None else str(error) or type(error).__name__
        found = [json.loads(text) for text in _gather_text(json.dumps([kind.__name__, message]))]
        if error is None and any(text for _, text in found):
            first, (kind_there, text) = next((i, x) for i, x in enumerate(found) if x[1])
            kind = OSError if kind_there == "OSError" else ValueError
            raise _marked(kind(f"process {first}: {text}"))
    if error is not None:
        _marked(error)


def _marked(error: Exception) -> Exception:
    """The error, marked as one that all processes raise."""
    vars(error)["is_everywhere"] = True
    return error


def is_everywhere(error: Exception) -> bool:
    """Whether all processes raise this error together, so that none needs to be told."""
    return "is_everywhere" in vars(error)


def is_first() -> bool:
    """Whether this is process 0, which writes the files of a run."""
    return jax.process_index() == 0


@jax.jit
def any_request(requests: jax.Array) -> jax.Array:
    """Combine the stop and save requests of all devices. Bit by bit, because not every backend reduces with `or`."""
    return jax.numpy.max(requests & STOP) | jax.numpy.max(requests & SAVE)


class Requests:
    """Stop and save requests, which all processes learn at the same step.

    A single process is answered at once. Several processes combine their requests in a small collective beside each
    step, and read its result one step later, so that no device waits for it.
    """

    def __init__(self, mesh: Mesh | None):
        self._mesh, self._sent = mesh, None

    def exchange(self, bits: int) -> int:
        """Send this process's requests. Returns those of any process, sent at the call before if there are several."""
        if jax.process_count() == 1 or self._mesh is None:
            return bits
        previous, self._sent = self._sent, any_request(self._on_devices(bits))
        return 0 if previous is None else int(previous)

    def forget(self) -> None:
        """Drop the requests in flight, because they are fulfilled."""
        self._sent = None

    def _on_devices(self, bits: int) -> jax.Array:
        """The bits on each of this process's devices, int32[devices]."""
        assert self._mesh is not None
        sharding = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
        mine = np.full(1, bits, np.int32)
        return jax.make_array_from_callback((self._mesh.size,), sharding, lambda index: mine)
