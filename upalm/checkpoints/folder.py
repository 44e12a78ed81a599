"""Self-describing checkpoint folders: write their description, open them, export them.

config.json       the model's shape, the tokenizer's hash, versions, and the run that trained it
tokenizer.model   SentencePiece; or tokenizer.json and symbols.json
steps/<k>/        Orbax: model and optimizer state after k steps (a run), or
model.safetensors the weights alone (an export)
"""

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.sharding import Mesh

from upalm._version import __version__
from upalm.checkpoints.arrays import from_arrays, read_weights, to_arrays
from upalm.checkpoints.config_json import FORMAT, checkpoints_folder, description, split_step
from upalm.checkpoints.lineage import CheckpointInfo, read_info
from upalm.checkpoints.manager import Checkpoints
from upalm.data.hf_tokenizer import load_tokenizer
from upalm.data.tokenizer import Tokenizer
from upalm.distributed.processes import is_first
from upalm.distributed.runtime import versions
from upalm.distributed.sharding import shapes
from upalm.files import parse_json, sha256_file, write_atomically
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder, empty_model, param_shardings

WEIGHTS = "model.safetensors"


def describe(
    folder: Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    run: dict[str, Any],
    info: CheckpointInfo = CheckpointInfo(),
    data_manifests: Mapping[str, str] = MappingProxyType({}),
    settings: Mapping[str, Any] | None = None,
    stages_before: Any = None,
) -> None:
    """Write `config.json` and the tokenizer, on the first process.

    Args:
        folder: the checkpoint's.
        config: the model's shape.
        tokenizer: the model's.
        run: the settings that decide the numbers.
        info: what the weights were trained on, of which `inputs_eos` and `gaps_trained` are written.
        data_manifests: checksums of the training data, by folder.
        settings: all settings of the run, from which it can be repeated.
        stages_before: the `lineage.Stage`s of the weights that the run started from, if known.
    """
    if not is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "format": FORMAT,
        "model": asdict(config),
        "tokenizer_hash": tokenizer.hash,
        "inputs_eos": info.inputs_eos,
        "gaps_trained": info.gaps_trained,
        "versions": versions(),
        "data_manifests": dict(data_manifests),
        "settings": dict(settings) if settings is not None else None,
        "stages_before": stages_before,
        "run": run,
    }
    write_atomically(folder / "config.json", json.dumps(content, indent=1) + "\n")
    tokenizer.save(folder)


class Checkpoint(NamedTuple):
    """A model, its tokenizer, and what it was trained on."""

    model: Decoder
    tokenizer: Tokenizer
    info: CheckpointInfo


def load_model(
    folder: str | Path, mesh: Mesh | None = None, *, remat: Literal["none", "matmuls", "full"] | None = None
) -> Checkpoint:
    """Open any checkpoint folder, whatever mesh it was written on.

    Args:
        folder: a run (its newest checkpoint), RUN/steps/500, an import or an export.
        mesh: devices whose shards the weights are read into.
        remat: replaces the checkpoint's own setting.

    Raises:
        ValueError: missing, truncated or mismatching parts, each named.
    """
    config, tokenizer, info = open_checkpoint(Path(folder))
    folder, step = split_step(Path(folder))
    template = empty_model(config if remat is None else replace(config, remat=remat))
    if mesh is not None:
        template = shapes(template, param_shardings(template, mesh))
    weights = folder / WEIGHTS
    if weights.is_file():
        check_weights(folder)
        return Checkpoint(read_weights(template, weights), tokenizer, info)
    with closing(Checkpoints(checkpoints_folder(folder), read_only=True)) as checkpoints:
        if step is not None:
            return Checkpoint(checkpoints.restore("model", template, step), tokenizer, info)
        newest = checkpoints.newest(lambda step: checkpoints.restore("model", template, step))
        if newest is None:
            raise ValueError(f"no checkpoint in {checkpoints.folder}.")
        return Checkpoint(newest[1], tokenizer, info)


def open_checkpoint(folder: Path) -> tuple[ModelConfig, Tokenizer, CheckpointInfo]:
    """Open a checkpoint folder without reading its weights, which may be large; `load_model` checks them.

    Raises:
        ValueError: missing or mismatching parts, each named.
    """
    run_folder, step = split_step(folder)
    stored = description(run_folder)
    if step is not None:
        with closing(Checkpoints(checkpoints_folder(run_folder), read_only=True)) as checkpoints:
            if step not in checkpoints.steps():
                raise ValueError(f"no checkpoint {step} in {checkpoints.folder}: there are {checkpoints.steps()}.")
    _check_files(run_folder, {name: x if name != WEIGHTS else None for name, x in _manifest(run_folder).items()})
    tokenizer = load_tokenizer(run_folder)
    if stored["tokenizer_hash"] not in tokenizer.hashes:
        raise ValueError(
            f"the tokenizer in {run_folder} has hash {tokenizer.hash}, the checkpoint was made with "
            f"{stored['tokenizer_hash']}: put the right tokenizer there."
        )
    try:
        config = ModelConfig(**stored["model"])
    except TypeError as e:
        writer = stored.get("versions", {}).get("upalm", "of another version")
        raise ValueError(
            f"{run_folder}/config.json describes a model that this version does not know ({e}): it was written by "
            f"upalm {writer}, this is {__version__}."
        ) from e
    if config.vocab_size < tokenizer.vocab_size:
        raise ValueError(f"{run_folder}: {tokenizer.vocab_size} subwords but {config.vocab_size} embeddings.")
    return config, tokenizer, read_info(folder)


def export(
    folder: Path, model: Decoder, tokenizer: Tokenizer, run: dict[str, Any], info: CheckpointInfo = CheckpointInfo()
) -> None:
    """Write the weights alone, as bf16 safetensors to share, and a manifest with the files' checksums.

    Args:
        folder: where to; files that it has already are part of the manifest.
        model: the weights.
        tokenizer: the model's.
        run: the settings of the run that made them.
        info: what they were trained on, that run included.
    """
    describe(folder, model.config, tokenizer, run, info, stages_before=info.stages[:-1] if info.stages else None)
    arrays = {name: np.asarray(leaf.astype(jnp.bfloat16)) for name, leaf in to_arrays(model).items()}
    safetensors.numpy.save_file(arrays, folder / WEIGHTS, metadata={"format": "upalm"})
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != "manifest.json" and p.suffix != ".new")
    manifest = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files}
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def export_run(run: Path, folder: Path) -> None:
    """Export a finished run, with its log and without what suited its machine alone.

    Args:
        run: folder of the run.
        folder: where to. Of the log it gets every validation loss and up to about 100 other lines.

    Raises:
        ValueError: see `load_model`.
    """
    model, tokenizer, info = load_model(run)
    config = replace(model.config, compute_dtype="float32", remat="matmuls")
    log = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    every = max(len(log) // 100, 1)
    folder.mkdir(parents=True, exist_ok=True)
    kept = [line for i, line in enumerate(log) if "validation_loss" in line or i % every == 0]
    write_atomically(folder / "metrics.jsonl", "".join(kept))
    export(folder, from_arrays(empty_model(config), to_arrays(model), run), tokenizer, description(run)["run"], info)


def check_weights(folder: Path) -> None:
    """Refuse weights that are not those of the folder's manifest, if there is one. They are read whole.

    Raises:
        ValueError: the weights or the manifest are damaged.
    """
    _check_files(folder, {name: checksum for name, checksum in _manifest(folder).items() if name == WEIGHTS})


def _check_files(folder: Path, checksums: Mapping[str, str | None]) -> None:
    """Refuse files that are missing or have another checksum; None stands for any."""
    for name, checksum in checksums.items():
        path = folder / name
        if not path.is_file() or (checksum is not None and sha256_file(path) != checksum):
            raise ValueError(f"{path} is damaged: its checksum is not that of {folder / 'manifest.json'}.")


def _manifest(folder: Path) -> dict[str, str]:
    """Return the checksums of manifest.json by file; none where there is no manifest."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return {}
    try:
        return {name: entry["sha256"] for name, entry in parse_json(manifest.read_bytes()).items()}
    except (ValueError, AttributeError, KeyError, TypeError) as e:
        raise ValueError(f"{manifest} is damaged: {e!r}.") from e
