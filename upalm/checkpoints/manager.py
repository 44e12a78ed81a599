"""A run's numbered checkpoints, written asynchronously by Orbax."""

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
from upalm.model.palm import Decoder

with epy.lazy_imports():  # a sixth of the imports of a run, which weights without steps do not need
    import orbax.checkpoint as ocp

T = TypeVar("T")


_WRITE_ERRORS = (OSError, RuntimeError, ValueError)


_READ_ERRORS = (Exception,)  # Orbax raises nothing narrower on damage


class Checkpoints:
    """The numbered states of a run, written by Orbax in the background, visible only when complete.

    Beside the state of step k lies what `checksums` found in it, so that damage shows when it is read.

    Args:
        folder: of the run, on a disk or in a bucket (gs://...); they lie in its `steps`.
        keep: newest ones to keep.
        keep_every: keep those of steps that are multiples of this, too; 0 keeps none of them.
    """

    def __init__(self, folder: epath.PathLike, *, keep: int = 2, keep_every: int = 0):
        self.folder = epath.Path(folder) / "steps"
        if "://" not in str(folder):
            self.folder = epath.Path(Path(str(folder)).absolute()) / "steps"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, cleanup_tmp_directories=True
        )
        handlers = {name: ocp.StandardCheckpointHandler() for name in ("model", "optimizer")}
        self._open = lambda: ocp.CheckpointManager(
            self.folder, options=options, item_handlers=handlers | {"about": ocp.JsonCheckpointHandler()}
        )
        self._manager = self._open()

    def steps(self) -> list[int]:
        """Steps done at each complete checkpoint, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def latest(self) -> int | None:
        """Steps done at the newest complete checkpoint."""
        return next(iter(self.steps()), None)

    def save(self, step: int, model: Decoder, opt_state: Any, about: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Start writing the state after `step` steps; an existing one is left alone.

        Raises:
            OSError: what was to be written could not be, this time or the time before; earlier ones are intact.
        """
        if self.latest() == step:
            return
        items = {"model": to_arrays(model), "optimizer": to_arrays(opt_state)}
        sums = {name: jax.device_get(checksums(arrays)) for name, arrays in items.items()}
        sums = {name: {k: int(v) for k, v in found.items()} for name, found in sums.items()}
        save: dict[str, Any] = {name: ocp.args.StandardSave(arrays) for name, arrays in items.items()}
        save["about"] = ocp.args.JsonSave({"checksums": sums, **about})
        with self._writing(f"checkpoint {step}"):
            self._manager.save(step, args=ocp.args.Composite(**save))

    def about(self, step: int) -> dict[str, Any]:
        """What `save` was told beside the state; nothing for those of older versions.

        Raises:
            ValueError: damaged.
        """
        if not (self.folder / str(step) / "about").exists():
            return {}
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        except _READ_ERRORS as e:
            raise ValueError(f"{self.folder}/{step} is damaged: {e}") from e
        return dict(found)

    def restore(self, item: str, template: Any, step: int | None = None) -> Any:
        """`model` or `optimizer` of a checkpoint, the newest if none is named, in the shape and layout of `template`.

        Raises:
            ValueError: no checkpoint, one of another model, or a damaged one (named).
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
            error = ValueError(f"cannot read {item} of {where} (damaged, or of another model): {reason}")
        raise_everywhere(error)
        if expected is not None:
            found = {k: int(v) for k, v in jax.device_get(checksums(arrays)).items()}
            if wrong := sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k)):
                raise ValueError(f"{where} is damaged: the checksum of {item} {wrong[:3]} ({len(wrong)}) is another.")
        return from_arrays(template, arrays, where)

    def newest(self, read: Callable[[int], T]) -> tuple[int, T] | None:
        """Step and contents of the newest checkpoint that `read` can read; None if there is no checkpoint.

        Those that it cannot, because they are damaged, are named on the way.

        Raises:
            ValueError: there are some, and none can be read.
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
        """Move checkpoints later than `step` into the folder `aside` of the run. Returns their steps."""
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
        """Errors of the disk, whatever Orbax makes of them."""
        try:
            yield
        except _WRITE_ERRORS as e:
            last = f"the last good one is {self.folder}/{self.latest()}" if self.latest() else "there is none before"
            reason = str(e).strip().split("\n")[-1][:300]
            raise OSError(f"{what} of {self.folder} could not be written ({reason}); {last}.") from e

    def wait(self) -> None:
        """Until what is being written is there.

        Raises:
            OSError: see `save`.
        """
        with self._writing("a checkpoint"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for what is being written.

        Raises:
            OSError: see `save`.
        """
        try:
            self.wait()
        finally:
            self._manager.close()
