"""A run's numbered checkpoints, written asynchronously by Orbax."""

import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import jax
from etils import epath, epy
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

from upalm.checkpoints.arrays import checksums, from_arrays, to_arrays
from upalm.distributed.processes import is_first, raise_everywhere
from upalm.files import is_remote
from upalm.model.palm import Decoder

with epy.lazy_imports():  # a sixth of the imports of a run, which weights without steps do not need
    import orbax.checkpoint as ocp

T = TypeVar("T")

_WRITE_ERRORS = (OSError, RuntimeError, ValueError)
_READ_ERRORS = (Exception,)  # Orbax raises nothing narrower on damage
_DAMAGE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""OSErrors of a checkpoint that is not whole; others are of the disk or of permissions, and may pass."""
_MAY_PASS = re.compile(
    "PERMISSION_DENIED|UNAUTHENTICATED|RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|UNKNOWN"
)
"""Beginnings of the ValueErrors in which TensorStore puts such OSErrors."""


logging.getLogger("absl").addFilter(lambda record: "directory is read only" not in record.getMessage())


class Checkpoints:
    """The numbered checkpoints of a run, written by Orbax in the background, visible only when complete.

    Each checkpoint records the checksums of its arrays, so that damage is noticed when it is read.

    Args:
        folder: that holds `steps`, on a disk or in a bucket (gs://...).
        keep: number of newest checkpoints to keep.
        keep_every: also keep checkpoints whose step is a multiple of this; 0 keeps none of them.
        read_only: create and delete nothing, as a reader beside a trainer must.
    """

    def __init__(self, folder: epath.PathLike, *, keep: int = 2, keep_every: int = 0, read_only: bool = False):
        self.folder = epath.Path(folder if is_remote(folder) else Path(folder).absolute()) / "steps"
        handlers = {name: ocp.StandardCheckpointHandler() for name in ("model", "optimizer")}
        handlers |= {"about": ocp.JsonCheckpointHandler()}
        # what Orbax would set by itself, with a warning, for a reader
        reading = {"read_only": True, "create": False, "save_interval_steps": 0}
        writing = {"max_to_keep": keep, "keep_period": keep_every or None, "cleanup_tmp_directories": True}
        options = ocp.CheckpointManagerOptions(**(reading if read_only else writing))
        self._open = lambda: ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        self._manager = self._open()

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def latest(self) -> int | None:
        """Return the step of the newest complete checkpoint."""
        return next(iter(self.steps()), None)

    def save(self, step: int, model: Decoder, opt_state: Any, about: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Start writing the state after `step` steps; an existing checkpoint of that step is left alone.

        Args:
            step: steps done.
            model: the model.
            opt_state: the optimizer's state.
            about: JSON to record beside them.

        Raises:
            OSError: this checkpoint or the one before could not be written; earlier ones are intact.
        """
        if self.latest() == step:
            return
        items = {"model": to_arrays(model), "optimizer": to_arrays(opt_state)}
        sums = {name: jax.device_get(checksums(arrays)) for name, arrays in items.items()}
        sums = {name: {k: int(v) for k, v in by_array.items()} for name, by_array in sums.items()}
        save: dict[str, Any] = {name: ocp.args.StandardSave(arrays) for name, arrays in items.items()}
        save["about"] = ocp.args.JsonSave({"checksums": sums, **about})
        with self._writing(f"checkpoint {step}"):
            self._manager.save(step, args=ocp.args.Composite(**save))

    def about(self, step: int) -> dict[str, Any]:
        """Return the JSON that `save` recorded beside the state; empty for checkpoints of older versions.

        Raises:
            ValueError: the checkpoint is damaged.
            OSError: it cannot be read now.
        """
        if not (self.folder / str(step) / "about").exists():
            return {}
        try:
            about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        except _READ_ERRORS as e:
            if (passing := _passing_error(e, f"{self.folder}/{step}")) is not None:
                raise passing from e
            raise ValueError(f"{self.folder}/{step} is damaged: {e}") from e
        if not isinstance(about, dict):
            raise ValueError(
                f"{self.folder}/{step} is damaged: expected an object in about/metadata, got {about!r:.50}."
            )
        return about

    def restore(self, item: str, template: Any, step: int | None = None) -> Any:
        """Read the `model` or `optimizer` of a checkpoint in the shapes and layout of `template`.

        Args:
            item: `model` or `optimizer`.
            template: tree of arrays or of their shapes.
            step: of the checkpoint; None takes the newest.

        Raises:
            ValueError: there is no checkpoint, or it is damaged or of another model; with its name.
            OSError: it cannot be read now.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise ValueError(f"no checkpoint in {self.folder}.")
        where = f"{self.folder}/{step}"
        here = SingleDeviceSharding(jax.local_devices()[0])  # else Orbax wants the devices that it was written on
        abstract = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or here)
            for name, x in to_arrays(template).items()
        }
        arrays, expected, error = {}, None, None
        try:
            args = ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)})
            arrays = self._manager.restore(step, args=args)[item]
            expected = self.about(step).get("checksums", {}).get(item)
        except _READ_ERRORS as e:
            reason = str(e).strip().split("\n")[0][:300]
            error = _passing_error(e, where) or ValueError(
                f"cannot read {item} of {where} (damaged, or of another model): {reason}"
            )
        raise_everywhere(error if isinstance(error, OSError) else None)  # first: no process passes it over
        raise_everywhere(error)
        if expected is not None:
            sums = {k: int(v) for k, v in jax.device_get(checksums(arrays)).items()}
            if wrong := sorted(k for k in expected.keys() | sums.keys() if expected.get(k) != sums.get(k)):
                raise ValueError(f"{where} is damaged: checksums of {item} {wrong[:3]} ({len(wrong)}) do not match.")
        return from_arrays(template, arrays, where)

    def newest(self, read: Callable[[int], T]) -> tuple[int, T] | None:
        """Read the newest checkpoint that `read` can read; damaged ones are named on stderr.

        Returns:
            Its step, and what `read` returned; None if there are no checkpoints.

        Raises:
            ValueError: there are checkpoints, and none can be read.
            OSError: see `restore`; no older checkpoint is taken then.
        """
        damaged = []
        for step in self.steps():
            try:
                return step, read(step)
            except ValueError as e:
                damaged.append(str(e))
                print(f"warning: {e}\nwarning: passing over checkpoint {step} for the one before", file=sys.stderr)
        if damaged:
            raise ValueError(f"none of the {len(damaged)} checkpoints in {self.folder} can be read: {damaged[0]}")
        return None

    def discard_after(self, step: int, aside: str) -> list[int]:
        """Move checkpoints after `step` into the folder `aside` beside `steps`. Returns their steps."""
        later = [k for k in self.steps() if k > step]
        self.wait()
        if later and is_first():
            (self.folder.parent / aside).mkdir(parents=True, exist_ok=True)
            for k in later:
                target = self.folder.parent / aside / str(k)
                if target.exists():
                    target.rmtree()
                (self.folder / str(k)).rename(target)
        multihost_utils.sync_global_devices(f"discarded after {step}")
        self._manager.close()
        self._manager = self._open()
        return later

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Raise OSError for errors of the disk, whatever Orbax makes of them."""
        try:
            yield
        except _WRITE_ERRORS as e:
            last = f"the last good one is {self.folder}/{self.latest()}" if self.latest() else "there is no earlier one"
            reason = str(e).strip().split("\n")[-1][:300]
            raise OSError(f"{what} of {self.folder} could not be written ({reason}); {last}.") from e

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is complete.

        Raises:
            OSError: see `save`.
        """
        with self._writing("a checkpoint"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the checkpoint that is being written, and free resources.

        Raises:
            OSError: see `save`.
        """
        try:
            self.wait()
        finally:
            self._manager.close()


def _passing_error(error: Exception, where: str) -> OSError | None:
    """Return the error to raise if the machine is to blame, and None if the checkpoint is, which is damaged then."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while isinstance(cause, Exception) and not any(cause is known for known in causes):
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    for cause in reversed(causes):
        of_machine = isinstance(cause, OSError | MemoryError | jax.errors.JaxRuntimeError)
        if (of_machine and not isinstance(cause, _DAMAGE)) or _MAY_PASS.match(str(cause)):
            reason = str(cause).strip().split("\n")[0][:300] or type(cause).__name__
            return OSError(f"{where} cannot be read now, and is left as it is ({reason}): try again once it can be.")
    return None
