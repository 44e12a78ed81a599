"""Checkpoints: self-describing folders that `load_model` opens.

config.json       the model's shape, the tokenizer's hash, versions, and the run that made it
tokenizer.model   SentencePiece; or tokenizer.json and symbols.json
steps/<k>/        Orbax: model and optimizer state after k steps (a run), or
model.safetensors the weights alone (an export)
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, SingleDeviceSharding

from upalm.hosts import all_read, is_first, versions
from upalm.model import Decoder, ModelConfig, param_shardings
from upalm.tokenizer import Tokenizer
from upalm.tokenizer_json import load_tokenizer

_FORMAT = 1
WEIGHTS = "model.safetensors"
T = TypeVar("T")
_WRITE_ERRORS = (OSError, RuntimeError, ValueError)
_READ_ERRORS = (Exception,)  # Orbax raises nothing narrower on damage


def to_arrays(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their path, such as `blocks.wq`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def from_arrays(template: Any, arrays: dict[str, Any], where: object) -> Any:
    """`template` with its leaves taken from `arrays`, laid out as there.

    Raises:
        ValueError: missing or surplus names, or another shape.
    """
    wanted = to_arrays(template)
    check_arrays(wanted, {name: array.shape for name, array in arrays.items()}, where)
    leaves = [jax.device_put(arrays[name].astype(leaf.dtype), leaf.sharding) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def check_arrays(wanted: dict[str, Any], shapes: dict[str, tuple[int, ...]], where: object) -> None:
    """Refuse arrays that are not those of a model.

    Raises:
        ValueError: missing or surplus names, or another shape.
    """
    if missing := sorted(wanted.keys() - shapes.keys()):
        raise ValueError(f"{where} lacks {missing[:3]} ({len(missing)} arrays): it is of another model.")
    if surplus := sorted(shapes.keys() - wanted.keys()):
        raise ValueError(f"{where} has {surplus[:3]} ({len(surplus)} arrays) that the model lacks.")
    for name, leaf in wanted.items():
        if shapes[name] != leaf.shape:
            raise ValueError(f"{where}: {name} has shape {shapes[name]}, the model {leaf.shape}.")


def describe(
    folder: Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    run: dict[str, Any],
    data_manifests: Mapping[str, str] = MappingProxyType({}),
    settings: Mapping[str, Any] | None = None,
    stages_before: Any = None,
) -> None:
    """Write `config.json` and the tokenizer, on the first process.

    Args:
        folder: to write to.
        config: the model's shape.
        tokenizer: of the model.
        run: what decided the numbers.
        data_manifests: checksums of what it was trained on, by folder.
        settings: all of the run's, from which it can be run again.
        stages_before: what the weights that it began with were trained on (`lineage.Stage`), if known.
    """
    if not is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "format": _FORMAT,
        "model": asdict(config),
        "tokenizer_hash": tokenizer.hash,
        "inputs_eos": tokenizer.inputs_eos,
        "gaps_trained": tokenizer.gaps_trained,
        "versions": versions(),
        "data_manifests": dict(data_manifests),
        "settings": dict(settings) if settings is not None else None,
        "stages_before": stages_before,
        "run": run,
    }
    (folder / "config.json").write_text(json.dumps(description, indent=1) + "\n")
    tokenizer.save(folder)


def split_step(folder: Path) -> tuple[Path, int | None]:
    """A run folder, and which of its checkpoints: RUN/steps/500 is the one after 500 steps, RUN the newest."""
    if folder.parent.name == "steps" and folder.name.isdigit():
        return folder.parent.parent, int(folder.name)
    return folder, None


def description(folder: Path) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        ValueError: no such folder, or not a checkpoint.
    """
    folder, _ = split_step(folder)
    path = folder / "config.json"
    if not path.is_file():
        what = "holds no config.json" if folder.is_dir() else "does not exist"
        raise ValueError(f"no checkpoint at {folder}: the folder {what}.")
    try:
        found = json.loads(path.read_text())
    except ValueError as e:
        raise ValueError(f"{path} is damaged: {e}.") from e
    if found.get("format") != _FORMAT:
        raise ValueError(f"{path} has format {found.get('format')}, expected {_FORMAT}.")
    return found


@jax.jit
def checksums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Of each array: its bits as whole numbers, each times an odd number of its place, summed modulo 2^32.

    A flipped bit changes the sum, whichever it is. The order of adding does not, so that every mesh finds the same.
    """

    def checksum(x: jax.Array) -> jax.Array:
        width = x.dtype.itemsize * 8
        bits = jax.lax.bitcast_convert_type(x, f"uint{width}").astype(jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis in range(x.ndim):
            index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            place = place * jnp.uint32(0x9E3779B1) + index
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

    return {name: checksum(jnp.asarray(x)) for name, x in arrays.items()}


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
        all_read(error)
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


def empty_model(config: ModelConfig) -> Decoder:
    """A decoder of shapes, without memory."""
    return eqx.filter_eval_shape(lambda: Decoder(config, key=jax.random.key(0)))


def load_model(
    folder: str | Path, mesh: Mesh | None = None, *, remat: Literal["none", "matmuls", "full"] | None = None
) -> tuple[Decoder, Tokenizer]:
    """Open any checkpoint folder (of a run, RUN/steps/500 or the newest), whatever mesh it was written on; with a
    `mesh`, straight into its shards; with a `remat`, that in place of its own.

    Raises:
        ValueError: missing, truncated or mismatching parts, each named.
    """
    folder, step = split_step(Path(folder))
    config, tokenizer = open_checkpoint(folder)
    template = empty_model(config if remat is None else replace(config, remat=remat))
    if mesh is not None:
        template = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            *(template, param_shardings(template, mesh)),
        )
    weights = folder / WEIGHTS
    if weights.is_file():
        return read_weights(template, weights), tokenizer
    checkpoints = Checkpoints(folder)
    try:
        if step is not None:
            if step not in checkpoints.steps():
                raise ValueError(f"no checkpoint {step} in {checkpoints.folder}: there are {checkpoints.steps()}.")
            return checkpoints.restore("model", template, step), tokenizer
        found = checkpoints.newest(lambda step: checkpoints.restore("model", template, step))
        if found is None:
            raise ValueError(f"no checkpoint in {checkpoints.folder}.")
        return found[1], tokenizer
    finally:
        checkpoints.close()


def open_checkpoint(folder: Path) -> tuple[ModelConfig, Tokenizer]:
    """What a checkpoint folder holds, without its weights.

    Raises:
        ValueError: missing or mismatching parts, each named.
    """
    folder, _ = split_step(folder)
    found = description(folder)
    _check_manifest(folder)
    tokenizer = load_tokenizer(folder, **_trained(found))
    if tokenizer.hash != found["tokenizer_hash"]:
        raise ValueError(
            f"the tokenizer in {folder} has hash {tokenizer.hash}, the checkpoint was made with "
            f"{found['tokenizer_hash']}: put the right tokenizer there."
        )
    config = ModelConfig(**found["model"])
    if config.vocab_size < tokenizer.vocab_size:
        raise ValueError(f"{folder}: {tokenizer.vocab_size} subwords but {config.vocab_size} embeddings.")
    return config, tokenizer


def read_weights(template: Any, path: Path) -> Any:
    """`template` with its leaves read from a safetensors file; of leaves that are laid out on a mesh, each device's
    part alone.

    Raises:
        ValueError: a damaged file, missing or surplus names, or another shape.
    """

    def read(array: Any, leaf: Any) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            return array[index].astype(leaf.dtype) if index else array[:].astype(leaf.dtype)

        if leaf.sharding is None:
            return jnp.asarray(part(None))
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_slice(name) for name in file.keys()}
            check_arrays(to_arrays(template), {name: tuple(a.get_shape()) for name, a in arrays.items()}, path)
            leaves = [read(arrays[name], leaf) for name, leaf in to_arrays(template).items()]
    except safetensors.SafetensorError as e:
        raise ValueError(f"{path} is damaged or truncated: {e}.") from e
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _trained(found: dict[str, Any]) -> dict[str, Any]:
    """What `Tokenizer` wants to know of the training; older folders say less."""
    is_causal = found["run"].get("data", {}).get("mixture") == "causal"
    gaps_trained = found.get("gaps_trained", False if is_causal else None)
    return {"inputs_eos": found.get("inputs_eos", False), "gaps_trained": gaps_trained}


def export(folder: Path, model: Decoder, tokenizer: Tokenizer, run: dict[str, Any]) -> None:
    """Write the weights alone as bf16 safetensors, to share them, and a manifest with the files' checksums."""
    describe(folder, model.config, tokenizer, run)
    arrays = {name: np.asarray(leaf.astype(jnp.bfloat16)) for name, leaf in to_arrays(model).items()}
    safetensors.numpy.save_file(arrays, folder / WEIGHTS, metadata={"format": "upalm"})
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != "manifest.json")
    manifest = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _check_manifest(folder: Path) -> None:
    manifest = folder / "manifest.json"
    for name, wanted in json.loads(manifest.read_text()).items() if manifest.is_file() else ():
        if _sha256(folder / name) != wanted["sha256"]:
            raise ValueError(f"{folder / name} is damaged: its checksum is not that of {manifest}.")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
