"""Checkpoints: self-describing folders that `load_model` opens.

config.json       the model's shape, the tokenizer's hash, versions, and the run that made it
tokenizer.model   SentencePiece; or tokenizer.json and symbols.json
steps/<k>/        Orbax: model and optimizer state after k steps (a run), or
model.safetensors the weights alone (an export)
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy
from jax.sharding import Mesh

from upalm.model import Decoder, ModelConfig
from upalm.sharding import param_shardings
from upalm.tokenizer import Tokenizer
from upalm.tokenizer_json import load_tokenizer

_FORMAT = 1
WEIGHTS = "model.safetensors"
_READ_ERRORS = (ValueError, OSError, KeyError, TypeError, RuntimeError)  # what Orbax raises on damage


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
) -> None:
    """Write `config.json` and the tokenizer; `data_manifests` are checksums of what it was trained on, by folder."""
    folder.mkdir(parents=True, exist_ok=True)
    packages = ("jax", "equinox", "optax", "grain", "orbax-checkpoint", "upalm")
    description = {
        "format": _FORMAT,
        "model": asdict(config),
        "tokenizer_hash": tokenizer.hash,
        "inputs_eos": tokenizer.inputs_eos,
        "gaps_trained": tokenizer.gaps_trained,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "data_manifests": dict(data_manifests),
        "run": run,
    }
    (folder / "config.json").write_text(json.dumps(description, indent=1) + "\n")
    tokenizer.save(folder)


def description(folder: Path) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        ValueError: no such folder, or not a checkpoint.
    """
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


class Checkpoints:
    """The numbered states of a run, written by Orbax in the background, visible only when complete."""

    def __init__(self, folder: Path, *, keep: int = 2):
        self.folder = folder / "steps"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(
            self.folder.absolute(),
            options=options,
            item_handlers={name: ocp.StandardCheckpointHandler() for name in ("model", "optimizer")},
        )

    def latest(self) -> int | None:
        """Steps done at the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, model: Decoder, opt_state: Any) -> None:
        """Start writing the state after `step` steps; an existing one is left alone."""
        if self.latest() == step:
            return
        items = {"model": to_arrays(model), "optimizer": to_arrays(opt_state)}
        save = {name: ocp.args.StandardSave(arrays) for name, arrays in items.items()}
        self._manager.save(step, args=ocp.args.Composite(**save))

    def restore(self, item: str, template: Any) -> Any:
        """`model` or `optimizer` of the newest checkpoint, in the shape of `template`.

        Raises:
            ValueError: no checkpoint, one of another model, or a damaged one (named).
        """
        step = self.latest()
        where = f"{self.folder}/{step}"
        if step is None:
            raise ValueError(f"no checkpoint in {self.folder}.")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, to_arrays(template))
        try:
            args = ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)})
            arrays = self._manager.restore(step, args=args)[item]
        except _READ_ERRORS as e:
            raise ValueError(f"cannot read {item} of {where} (damaged, or of another model): {e}") from e
        return from_arrays(template, arrays, where)

    def close(self) -> None:
        """Wait for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def empty_model(config: ModelConfig) -> Decoder:
    """A decoder of shapes, without memory."""
    return eqx.filter_eval_shape(lambda: Decoder(config, key=jax.random.key(0)))


def load_model(folder: str | Path, mesh: Mesh | None = None) -> tuple[Decoder, Tokenizer]:
    """Open any checkpoint folder, whatever mesh it was written on; with a `mesh`, straight into its shards.

    Raises:
        ValueError: missing, truncated or mismatching parts, each named.
    """
    folder = Path(folder)
    config, tokenizer = open_checkpoint(folder)
    template = empty_model(config)
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
        return checkpoints.restore("model", template), tokenizer
    finally:
        checkpoints.close()


def open_checkpoint(folder: Path) -> tuple[ModelConfig, Tokenizer]:
    """What a checkpoint folder holds, without its weights.

    Raises:
        ValueError: missing or mismatching parts, each named.
    """
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
