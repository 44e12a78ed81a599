"""Export a checkpoint in a Hugging Face format, with its tokenizer and model card."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors.numpy

from upalm._version import __version__
from upalm.checkpoints.arrays import to_arrays
from upalm.checkpoints.config_json import description
from upalm.checkpoints.folder import WEIGHTS, load_model, open_checkpoint
from upalm.checkpoints.lineage import read_info
from upalm.data.hf_tokenizer import to_json
from upalm.data.tokenizer import Tokenizer
from upalm.interop.cohere import _TOP, ARCHITECTURE, _names, _shape, to_hf_layout
from upalm.interop.files import _NAMES, _TORCH_NAMES, DTYPES, _opened, new_folder
from upalm.interop.hf_import import Progress, _silent
from upalm.model.config import ModelConfig
from upalm.model.palm import empty_model

_SHARD_BYTES = 5_000_000_000


# --- Export ---------------------------------------------------------------------------------------


class Exported(NamedTuple):
    """What an export made."""

    folder: Path
    dtype: str
    n_bytes: int


def export_hf(
    checkpoint: Path,
    dest: Path,
    *,
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep",
    shard_bytes: int = _SHARD_BYTES,
    progress: Progress = _silent,
) -> Exported:
    """Write a checkpoint as safetensors, config, tokenizer, generation config and model card that transformers, and
    whatever serves its Cohere architecture, loads without code of ours.

    Args:
        checkpoint: folder of a run, or of weights.
        dest: folder to make.
        dtype: of the weights; `keep` is what the checkpoint has (float32, for a run).
        shard_bytes: most bytes in a file.
        progress: called with arrays done and in all.

    Raises:
        ValueError: what the architecture there cannot express, with the option that avoids it; no checkpoint; a
            destination that exists.
    """
    found = description(checkpoint)
    config = ModelConfig(**found["model"])
    refuse_inexpressible(config)
    with ExitStack() as stack, new_folder(dest) as folder:
        arrays, tokenizer = stack.enter_context(_arrays_of(checkpoint))
        asked = None if dtype == "keep" else DTYPES[next(k for k, v in _TORCH_NAMES.items() if v == dtype)]
        kinds = {name: asked or arrays(name, None) for name in to_arrays(empty_model(config))}
        n_bytes = _write_shards(folder, arrays, config, kinds, shard_bytes, progress)
        names = {_TORCH_NAMES[_NAMES[d]] for d in kinds.values()}
        chosen = "float32" if len(names) > 1 else names.pop()
        for name, content in _described(config, tokenizer, chosen).items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
        for name, content in to_json(tokenizer).items():
            (folder / name).write_bytes(content)
        (folder / "README.md").write_text(_card(checkpoint, config, tokenizer))
    return Exported(dest, chosen, n_bytes)


def refuse_inexpressible(config: ModelConfig) -> None:
    """Refuse a model that the Cohere architecture cannot be.

    Raises:
        ValueError: with the reason, and the option that avoids it.
    """
    if config.norm != "layernorm":
        raise ValueError(
            "RMS norm has no counterpart in the Cohere architecture, whose norms take the mean off: train with "
            "--start.model.norm layernorm, or import without --norm rms, to export."
        )
    if config.xpos_scale_base:
        raise ValueError("xPos has no counterpart in the Cohere architecture: use --start.model.xpos-scale-base 0.")
    if config.qk_norm == "l2":
        raise ValueError("queries and keys of unit length have no counterpart there: use --start.model.qk-norm none.")


@contextmanager
def _arrays_of(checkpoint: Path) -> Iterator[tuple[Callable[[str, int | None], Any], Tokenizer]]:
    """A function from a name and a layer (-1: the whole array, None: its dtype) to the array, and the tokenizer."""
    weights = checkpoint / WEIGHTS
    with ExitStack() as stack:
        if weights.is_file():
            _, tokenizer, _ = open_checkpoint(checkpoint)
            file = stack.enter_context(_opened(weights))
            slices = {name: file.get_slice(name) for name in file.keys()}
        else:
            model, tokenizer, _ = load_model(checkpoint)
            slices = {name: np.asarray(leaf) for name, leaf in to_arrays(model).items()}

        def arrays(name: str, layer: int | None) -> Any:
            array = slices[name]
            if layer is None:
                return array.dtype if isinstance(array, np.ndarray) else DTYPES[array.get_dtype()]
            return array[:] if layer < 0 else array[layer : layer + 1][0]

        yield arrays, tokenizer


def _write_shards(folder: Path, arrays, config: ModelConfig, kinds, shard_bytes: int, progress: Progress) -> int:
    """The weights, in as many files as they need, and their index. Returns their bytes."""
    names = list(_names(config).items())
    if not config.final_norm_scale:
        names.append((_TOP["norm"], ("norm", -1)))  # there it has one
    sizes = [math.prod(_shape(name, config)) * kinds.get(name, kinds["embed"]).itemsize for _, (name, _) in names]
    shards: list[list[int]] = [[]]
    held = 0
    for i, size in enumerate(sizes):
        if shards[-1] and held + size > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(i)
        held += size
    weight_map, done = {}, 0
    for number, members in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else WEIGHTS
        tensors = {}
        for i in members:
            there, (name, layer) = names[i]
            tensors[there] = _exported(arrays, name, layer, config, kinds.get(name, kinds["embed"]))
            weight_map[there] = file
            done += 1
            progress(done, len(names))
        safetensors.numpy.save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return sum(sizes)


def _exported(arrays, name: str, layer: int, config: ModelConfig, dtype: np.dtype) -> np.ndarray:
    if name == "norm" and not config.final_norm_scale:
        return np.ones(config.d_model, dtype)
    array = to_hf_layout(name, arrays(name, layer), config)
    if name.endswith("norm") and config.norm_offset:
        array = array.astype(np.float32) + np.float32(config.norm_offset)
    found = np.ascontiguousarray(array).astype(dtype)
    if dtype == np.float16 and not np.isfinite(found).all():
        raise ValueError(f"{name} has numbers beyond float16: export with --dtype bfloat16.")
    return found


def _described(config: ModelConfig, tokenizer: Tokenizer, dtype: str) -> dict[str, dict[str, Any]]:
    """`config.json` and `generation_config.json`."""
    symbols = tokenizer.symbols
    ids = {"bos_token_id": symbols.bos_id, "eos_token_id": symbols.eos_id, "pad_token_id": symbols.bos_id}
    model = {
        "architectures": [ARCHITECTURE],
        "model_type": "cohere",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.d_head,
        "hidden_act": "silu",
        "max_position_embeddings": config.seq_len,
        "layer_norm_eps": config.norm_eps,
        "logit_scale": config.head_scale,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "use_qk_norm": config.qk_norm != "none",
        "tie_word_embeddings": config.tied_head,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    return {"config.json": model | ids, "generation_config.json": ids}


def _card(checkpoint: Path, config: ModelConfig, tokenizer: Tokenizer) -> str:
    """The model card: what it is, how it was trained and on what, how to prompt it, whom to cite."""
    found, info, symbols = description(checkpoint), read_info(checkpoint), tokenizer.symbols
    run = found["run"]
    data = run.get("data", {})
    start = run.get("start", {})
    trained = {
        "mixture of denoisers": data.get("mixture"),
        "denoisers": "; ".join(run.get("denoisers", ())) or None,
        "started from": start.get("checkpoint") or ("random weights" if start else None),
        "steps": run.get("n_steps"),
        "rows a batch": data.get("batch_size"),
        "tokens a row": data.get("seq_len"),
        "text": data.get("source"),
        "data manifests (SHA-256)": "; ".join(f"{k}: {v}" for k, v in found.get("data_manifests", {}).items()) or None,
        "imported as": run.get("imported"),
    }
    lines = "\n".join(f"| {name} | {value} |" for name, value in trained.items() if value is not None)
    modes = ", ".join(f"`{name}` {list(ids)}" for name, ids in symbols.modes.items())
    sentinels = f"{symbols.sentinels[0]}, {symbols.sentinels[1]}, ... {symbols.sentinels[-1]}"
    gaps = "after its inputs, EOS, " if info.inputs_eos else ""
    return f"""---
library_name: transformers
tags: [upalm, ul2r, infilling]
---

# A causal language model{", continued with UL2R" if info.gaps_trained else ""}

{config.n_params / 1e6:,.1f}M parameters: {config.n_layers} layers of width {config.d_model}, {config.n_heads} heads of
{config.d_head}, {config.n_kv_heads} key-value heads. PaLM's block with LayerNorm, exported by upalm {__version__} as
`{ARCHITECTURE}`: transformers loads it without further code.

## Training

| | |
| --- | --- |
{lines}

## Use

As a causal model, as any. To fill gaps as it was trained to: BOS {symbols.bos_id}, the ids of a mode token
({modes}), the text with a sentinel in place of each gap, {gaps}all of it seen in both directions (a 4-D mask over the
prompt); the answer repeats each sentinel, followed by what belongs there, and ends with EOS {symbols.eos_id}.
The sentinels `<extra_id_0>` to `<extra_id_99>` are the ids {sentinels}. Leave them out of ordinary text.
`examples/infill_with_transformers.py` of upalm does this.

## Cite

*Transcending Scaling Laws with 0.1% Extra Compute* (U-PaLM, arXiv:2210.11399), and upalm (`upalm cite` prints BibTeX).
"""
