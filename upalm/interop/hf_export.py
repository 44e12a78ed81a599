"""Export a checkpoint in a Hugging Face format, with its tokenizer, settings and model card."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors.numpy

from upalm._version import __version__
from upalm.checkpoints.arrays import to_arrays
from upalm.checkpoints.config_json import description
from upalm.checkpoints.folder import WEIGHTS, check_weights, load_model, open_checkpoint
from upalm.checkpoints.lineage import CheckpointInfo, count_steps
from upalm.data.hf_tokenizer import JsonTokenizer
from upalm.data.tokenizer import SentencePiece, Tokenizer
from upalm.files import parse_object
from upalm.interop import prompt_format
from upalm.interop.architectures import (
    Architecture,
    Settings,
    architecture_for,
    architecture_of,
    model_config,
    settings_of,
)
from upalm.interop.files import DTYPES, check_new, new_folder, open_safetensors
from upalm.interop.hf_import import Progress
from upalm.interop.hf_tokenizer_files import SOURCE_CARD, tokenizer_files
from upalm.interop.weights import TOP, hf_names, hf_shape, to_hf_layout
from upalm.model.config import ModelConfig
from upalm.model.palm import empty_model
from upalm.ul2r.symbols import UNK_ID

_SHARD_BYTES = 5_000_000_000

SOURCE_CONFIG = f"{JsonTokenizer.SOURCE}/config.json"
"""The config.json of the checkpoint that this one was imported from."""


class Exported(NamedTuple):
    """Result of an export."""

    folder: Path
    architecture: str
    dtype: str
    n_bytes: int


def export_hf(
    checkpoint: Path,
    dest: Path,
    *,
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep",
    shard_bytes: int = _SHARD_BYTES,
    progress: Progress = lambda done, total: None,
) -> Exported:
    """Write a checkpoint as safetensors, config, tokenizer, generation config and model card that transformers loads.

    A checkpoint goes out in the architecture that it was imported from, with every setting and file that it came with;
    a model trained here as the first architecture of the table that has its options.

    Args:
        checkpoint: folder of a run, or of weights.
        dest: folder to make.
        dtype: of the weights; `keep` is what the checkpoint has (float32, for a run).
        shard_bytes: most bytes in a file.
        progress: called with arrays done and in all.

    Raises:
        ValueError: options that no architecture of the table has, with those that avoid it; no checkpoint; a
            destination that exists.
    """
    check_new(dest)
    config, tokenizer, info = open_checkpoint(checkpoint)
    row, source = _target(config, tokenizer, checkpoint)
    with _open_arrays(checkpoint) as arrays, new_folder(dest) as folder:
        wanted = None if dtype == "keep" else np.dtype(dtype)
        dtypes = {name: wanted or _dtype_of(arrays[name]) for name in to_arrays(empty_model(config))}
        n_bytes = _write_shards(folder, arrays, config, row, dtypes, shard_bytes, progress)
        names = {d.name for d in dtypes.values()}
        written_dtype = "float32" if len(names) > 1 else names.pop()
        files = tokenizer_files(tokenizer)
        files["config.json"] = _settings(config, row, source, tokenizer, written_dtype).encode()
        files["README.md"] = _card(checkpoint, config, row, tokenizer, info).encode()
        files[prompt_format.FILE] = prompt_format.to_bytes(info)
        if "generation_config.json" not in files:
            files["generation_config.json"] = _dump(_token_ids(tokenizer)).encode()
        for name, content in files.items():
            (folder / name).write_bytes(content)
    return Exported(dest, row.name, written_dtype, n_bytes)


def _target(config: ModelConfig, tokenizer: Tokenizer, checkpoint: Path) -> tuple[Architecture, Settings]:
    """Return the architecture to write, and the config.json that the model came with (empty without one).

    Raises:
        ValueError: options that no architecture of the table has, or a damaged config.json of the source.
    """
    content = tokenizer.files.get(SOURCE_CONFIG)
    if content is None:
        return architecture_for(config), {}
    source = parse_object(content, checkpoint / SOURCE_CONFIG)
    row = architecture_of(source, checkpoint)
    return (row, source) if not row.differing(config) else (architecture_for(config), {})


def _dump(content: Settings) -> str:
    return json.dumps(content, indent=2) + "\n"


def _settings(config: ModelConfig, row: Architecture, source: Settings, tokenizer: Tokenizer, dtype: str) -> str:
    """Return config.json: the source's own text where it describes this model still."""
    if not source:
        return _dump(settings_of(config, row, dtype) | _token_ids(tokenizer))
    dtype_key = "dtype" if "dtype" in source else "torch_dtype"
    described = model_config(source, "the source")
    same = replace(described, compute_dtype=config.compute_dtype, remat=config.remat) == config
    if same and source.get(dtype_key, dtype) == dtype:
        return tokenizer.files[SOURCE_CONFIG].decode()
    changed = {} if same else settings_of(config, row, dtype)
    return _dump(dict(source) | changed | {dtype_key: dtype})


def _token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return BOS, EOS and a pad token that no text has."""
    ids = {"bos_token_id": tokenizer.symbols.bos_id, "eos_token_id": tokenizer.symbols.eos_id}
    return ids | ({"pad_token_id": UNK_ID} if isinstance(tokenizer, SentencePiece) else {})


@contextmanager
def _open_arrays(checkpoint: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the arrays of a checkpoint by name: of a file of weights, slices that are read when they are indexed."""
    if (checkpoint / WEIGHTS).is_file():
        check_weights(checkpoint)
        with open_safetensors(checkpoint / WEIGHTS) as file:
            yield {name: file.get_slice(name) for name in file.keys()}
    else:
        yield {name: np.asarray(leaf) for name, leaf in to_arrays(load_model(checkpoint).model).items()}


def _dtype_of(array: Any) -> np.dtype:
    return array.dtype if isinstance(array, np.ndarray) else DTYPES[array.get_dtype()]


def _write_shards(
    folder: Path,
    arrays: Mapping[str, Any],
    config: ModelConfig,
    row: Architecture,
    dtypes: dict[str, np.dtype],
    shard_bytes: int,
    progress: Progress,
) -> int:
    """Write the weights, in as many files as they need, and their index. Return their bytes."""
    names = list(hf_names(config, row).items())
    if not config.final_norm_scale:
        names.append((TOP["norm"], ("norm", -1)))  # every class has one
    sizes = [math.prod(hf_shape(name, config)) * dtypes.get(name, dtypes["embed"]).itemsize for _, (name, _) in names]
    shards = _split(sizes, shard_bytes)
    weight_map, n_done = {}, 0
    for number, members in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else WEIGHTS
        tensors = {}
        for i in members:
            hf_name, (name, layer) = names[i]
            tensors[hf_name] = _tensor(arrays, name, layer, config, row, dtypes.get(name, dtypes["embed"]))
            weight_map[hf_name] = file
            n_done += 1
            progress(n_done, len(names))
        safetensors.numpy.save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # the library leaves it to its owner alone
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_bytes(_dump(index).encode())
    return sum(sizes)


def _split(sizes: list[int], shard_bytes: int) -> list[list[int]]:
    """Return the tensors of each file, in order."""
    shards: list[list[int]] = [[]]
    n_bytes = 0
    for i, size in enumerate(sizes):
        if shards[-1] and n_bytes + size > shard_bytes:
            shards.append([])
            n_bytes = 0
        shards[-1].append(i)
        n_bytes += size
    return shards


def _tensor(arrays, name: str, layer: int, config: ModelConfig, row: Architecture, dtype: np.dtype) -> np.ndarray:
    offset = config.norm_offset - row.options["norm_offset"]
    if name == "norm" and not config.final_norm_scale:
        return np.full(config.d_model, 1 - row.options["norm_offset"], dtype)
    stored = arrays[name][:] if layer < 0 else arrays[name][layer : layer + 1][0]
    array = to_hf_layout(name, stored, config, row)
    if name.endswith("norm") and offset:
        array = array.astype(np.float32) + np.float32(offset)
    tensor = np.ascontiguousarray(array).astype(dtype)
    if dtype == np.float16 and not np.isfinite(tensor).all():
        raise ValueError(f"{name} has numbers beyond float16: export with --dtype bfloat16.")
    return tensor


# --- The model card -------------------------------------------------------------------------------


def _card(checkpoint: Path, config: ModelConfig, row: Architecture, tokenizer: Tokenizer, info: CheckpointInfo) -> str:
    """Return the model card: the model, its training, how to prompt it, whom to cite."""
    return f"""---
library_name: transformers
tags: [upalm, ul2r, infilling]
{_licence(tokenizer)}---

# A causal language model{", continued with UL2R" if info.gaps_trained else ""}

{config.n_params / 1e6:,.1f}M parameters: {config.n_layers} layers of width {config.d_model}, {config.n_heads} heads of
{config.d_head}, {config.n_kv_heads} key-value heads. Exported by upalm {__version__} as `{row.name}`: transformers
loads it without further code.

## Training

| | |
| --- | --- |
{_training_rows(checkpoint)}

{_use(tokenizer, info)}

## Cite

*Transcending Scaling Laws with 0.1% Extra Compute* (U-PaLM, arXiv:2210.11399), and upalm (`upalm cite` prints BibTeX).
"""


def _licence(tokenizer: Tokenizer) -> str:
    """Return the lines about the licence from the source's model card."""
    card = tokenizer_files(tokenizer).get(SOURCE_CARD, b"").decode(errors="replace").replace("\r\n", "\n")
    if not card.startswith("---\n"):
        return ""
    front = card[4:].partition("\n---")[0]
    return "".join(f"{line}\n" for line in front.splitlines() if line.startswith("license"))


def _training_rows(checkpoint: Path) -> str:
    stored = description(checkpoint)
    run = stored["run"]
    data, start = run.get("data", {}), run.get("start", {})
    manifests = "; ".join(f"{k}: {v}" for k, v in stored.get("data_manifests", {}).items())
    rows = {
        "mixture of denoisers": data.get("mixture"),
        "denoisers": "; ".join(run.get("denoisers", ())) or None,
        "started from": start.get("checkpoint") or ("random weights" if start else None),
        "steps": count_steps(checkpoint, run["n_steps"]) if "n_steps" in run else None,
        "rows per batch": data.get("batch_size"),
        "tokens per row": data.get("seq_len"),
        "text": data.get("source"),
        "data manifests (SHA-256)": manifests or None,
        "imported as": run.get("imported"),
    }
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value is not None)


def _use(tokenizer: Tokenizer, info: CheckpointInfo) -> str:
    symbols = tokenizer.symbols
    modes = ", ".join(f"`{name}` {list(ids)}" for name, ids in symbols.modes.items())
    sentinels = f"{symbols.sentinels[0]}, {symbols.sentinels[1]}, ... {symbols.sentinels[-1]}"
    gaps = "after its inputs, EOS, " if info.inputs_eos else ""
    return f"""## Use

As a causal model, as any. To fill gaps as it was trained to: BOS {symbols.bos_id}, the ids of a mode token
({modes}), the text with a sentinel in place of each gap, {gaps}all of it seen in both directions (a 4-D mask over the
prompt); the answer repeats each sentinel, followed by what belongs there, and ends with EOS {symbols.eos_id}.
The sentinels `<extra_id_0>` to `<extra_id_99>` are the ids {sentinels} ({tokenizer.sentinels_are}). Leave them out of
ordinary text. `examples/infill_with_transformers.py` of upalm does this."""
