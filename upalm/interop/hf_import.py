"""Open checkpoints in, standard checkpoints out: the Cohere family of Hugging Face (Command-R, Aya).

Its blocks are PaLM's: attention and SwiGLU side by side under one norm, no biases, tied embeddings. With one key-value
head it is PaLM with LayerNorm. Rotary pairs lie next to each other there and half a head apart here; the weights of
queries and keys are permuted for it, once, which rounds nothing.

Dims: D d_model, N heads, K key-value heads, H d_head, F d_ff, V vocabulary, L layers.
"""

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from upalm.checkpoints.arrays import to_arrays
from upalm.checkpoints.folder import WEIGHTS, describe
from upalm.checkpoints.lineage import CheckpointInfo
from upalm.data.hf_tokenizer import JsonTokenizer, Roles, choose_roles, companions
from upalm.data.tokenizer import Tokenizer
from upalm.interop.cohere import (
    _BUFFER,
    _TOP,
    ARCHITECTURE,
    _names,
    _shape,
    centred,
    fold_layernorm,
    from_hf_layout,
    is_centred,
)
from upalm.interop.files import _NAMES, DTYPES, ArrayWriter, _opened, _pieces, _read_json, new_folder
from upalm.model.config import ModelConfig
from upalm.model.palm import empty_model

Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    pass


def _weight_files(source: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order.

    Raises:
        ValueError: none, one that is missing, or an index that points out of the folder.
    """
    index = source / "model.safetensors.index.json"
    if not index.is_file():
        if not (source / "model.safetensors").is_file():
            raise ValueError(f"no model.safetensors and no {index.name} in {source}: only safetensors are read.")
        return [source / "model.safetensors"]
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise ValueError(f"{index} is damaged: expected a weight_map of file names.")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} points to {name!r}: expected the name of a .safetensors file beside it.")
        if not (source / name).is_file():
            raise ValueError(f"{index} names {name}, which is not there.")
    return [source / name for name in names]


# --- Import ---------------------------------------------------------------------------------------


class Imported(NamedTuple):
    """What an import made."""

    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer
    dtype: str
    """Of the weights, as they were and stay."""
    ignored: list[str]
    """Arrays that are computed, not learnt, and so were left out."""


def import_hf(
    source: str | Path,
    dest: Path,
    *,
    norm: Literal["layernorm", "rms"] = "layernorm",
    progress: Progress = _silent,
) -> Imported:
    """Read a Cohere-architecture checkpoint into a folder that `load_model`, training and sampling open.

    Weights go from file to file a piece at a time, in the precision they have.

    Args:
        source: a folder with config.json, safetensors and tokenizer.json, or a name on the Hugging Face hub.
        dest: folder to make.
        norm: `rms` folds LayerNorm into RMS norm (see `fold_layernorm`), in float32; that cannot be exported back.
        progress: called with tensors done and in all.

    Raises:
        ValueError: another architecture, missing, surplus, misshapen or damaged arrays, weights that contradict
            config.json, a tokenizer larger than the embedding, or a destination that exists.
    """
    source = _found(source)
    there = _read_json(source / "config.json")
    tied = model_config(there, source)
    config = fold_layernorm(tied) if norm == "rms" else tied
    tokenizer = _imported_tokenizer(source, there, config)
    files = _weight_files(source)
    where, dtypes, ignored = _check_tensors(files, tied)
    with new_folder(dest) as folder:
        arrays = {}
        for name, leaf in to_arrays(empty_model(config)).items():
            changes = norm == "rms" and is_centred(name, config)
            dtype = dtypes.get(name, dtypes["embed"])  # a head that was tied is of the embeddings
            arrays[name] = np.dtype(np.float32) if changes else dtype, leaf.shape
        compute = "float32" if all(dtype == np.float32 for dtype in dtypes.values()) else "bfloat16"
        config = ModelConfig(**{**config.__dict__, "compute_dtype": compute})
        run = {"imported": ARCHITECTURE, "norm": norm}
        is_own_export = (source / JsonTokenizer.ROLES_FILE).is_file()  # which says nothing of its training
        info = CheckpointInfo(gaps_trained=None if is_own_export else False)
        describe(folder, config, tokenizer, run, info)
        writer = ArrayWriter(folder / WEIGHTS, arrays)
        try:
            _copy(files, where, writer, tied, config, progress)
        finally:
            writer.close()
    return Imported(dest, config, tokenizer, "/".join(sorted({_NAMES[d] for d in dtypes.values()})), ignored)


def _copy(files: list[Path], where, writer: ArrayWriter, tied: ModelConfig, config: ModelConfig, progress) -> None:
    """Every tensor into its place; `config` says whether it is centred on the way. One file is open at a time: what
    has been read of a file stays in memory until it is closed.
    """
    folds, done = config.norm == "rms", 0

    def put(there: str, tensor: Any) -> None:
        name, layer = where[there]
        changes = folds and is_centred(name, config)
        if layer >= 0:
            array = from_hf_layout(name, tensor[:], tied)
            writer.write(name, layer * array.size, centred(array) if changes else array)
            return
        for first, rows in _pieces(tensor):
            writer.write(name, first, centred(rows) if changes else rows)
            if name == "embed" and folds and tied.tied_head:
                writer.write("head", first, rows)

    for path in files:
        with _opened(path) as file:
            for there in file.keys():
                if there in where:
                    put(there, file.get_slice(there))
                    done += 1
                    progress(done, len(where))


def _found(source: str | Path) -> Path:
    """A local folder, or a name on the hub, fetched."""
    if Path(source).is_dir():
        return Path(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise ValueError(f"no folder {source}.")
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as e:
        raise ValueError(f"no folder {source}; as a name on the hub it needs: pip install 'upalm[hf]'.") from e
    try:
        wanted = ["*.json", "*.safetensors", "*.jinja"]
        return Path(huggingface_hub.snapshot_download(str(source), allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError) as e:
        raise ValueError(f"no folder {source}, and the hub could not be asked for it: {e}") from e


def model_config(there: dict[str, Any], source: object) -> ModelConfig:
    """The shape of the model that a `config.json` of Hugging Face describes.

    Raises:
        ValueError: another architecture, or a setting that this one cannot have.
    """
    named = (there.get("architectures") or [there.get("model_type")])[0]
    if named not in (ARCHITECTURE, "cohere"):
        raise ValueError(
            f"{source} has architecture {named}: supported are {ARCHITECTURE} (Command-R, Aya), and by "
            "`upalm import-palm` the PaLM of PaLM-rlhf-pytorch."
        )
    rope = there.get("rope_parameters") or there.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or there.get("rope_theta") or 0.0
    kind = rope.get("rope_type", rope.get("type", "default"))
    refused = {
        "attention_bias": there.get("attention_bias", False),
        "hidden_act": there.get("hidden_act", "silu") != "silu",
        "rope_type": kind != "default",
        "quantization_config": "quantization_config" in there,
        "rope_theta": not theta > 0,
    }
    if wrong := [name for name, is_wrong in refused.items() if is_wrong]:
        values = {"rope_type": kind, "rope_theta": theta} | {name: there.get(name) for name in wrong if name in there}
        shown = ", ".join(f"{name} {values.get(name)}" for name in wrong)
        raise ValueError(
            f"{source}/config.json has {shown}: expected no biases, silu, plain rotary embeddings with their "
            "rope_theta given, and weights that are not quantised."
        )
    try:
        n_heads, d_model = there["num_attention_heads"], there["hidden_size"]
        return ModelConfig(
            vocab_size=there["vocab_size"],
            d_model=d_model,
            n_layers=there["num_hidden_layers"],
            n_heads=n_heads,
            d_head=there.get("head_dim") or d_model // n_heads,
            d_ff=there["intermediate_size"],
            seq_len=there["max_position_embeddings"],
            n_kv_heads=there.get("num_key_value_heads") or n_heads,
            norm="layernorm",
            norm_eps=there.get("layer_norm_eps", 1e-5),
            norm_offset=0.0,
            final_norm_scale=True,
            qk_norm="norm" if there.get("use_qk_norm") else "none",
            rope_theta=float(theta),
            logit_scale=there.get("logit_scale", 0.0625),
            tied_head=there.get("tie_word_embeddings", True),
        )
    except (KeyError, TypeError) as e:
        raise ValueError(f"{source}/config.json lacks a setting, or has it wrong: {e!r}.") from e


def _imported_tokenizer(source: Path, there: dict[str, Any], config: ModelConfig) -> Tokenizer:
    path = source / JsonTokenizer.FILE
    if not path.is_file():
        raise ValueError(f"no {path}: the tokenizer is read from it.")
    content, eos = path.read_bytes(), there.get("eos_token_id")
    eos_id = eos[0] if isinstance(eos, list) else eos
    stored = source / JsonTokenizer.ROLES_FILE
    try:
        if stored.is_file():  # exported by this project
            roles = Roles(**_read_json(stored))
        else:
            roles = choose_roles(content, bos_id=there.get("bos_token_id"), eos_id=eos_id)
        tokenizer = JsonTokenizer(content, roles, companions(source))
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} subwords, the model {config.vocab_size} embeddings: "
            "they do not belong together."
        )
    return tokenizer


def _check_tensors(
    files: list[Path], config: ModelConfig
) -> tuple[dict[str, tuple[str, int]], dict[str, np.dtype], list[str]]:
    """The tensors to read, the dtype of each array here, and names that are not weights.

    Raises:
        ValueError: missing, surplus, twice, misshapen, of a dtype that is not read, or layers that differ in dtype.
    """
    where, found, dtypes = _names(config), {}, {}
    for path in files:
        with _opened(path) as file:
            for there in file.keys():
                if there in found:
                    raise ValueError(f"{there} is both in {found[there]} and in {path}.")
                found[there] = path
                if there in where:
                    _check_tensor(there, file.get_slice(there), where[there][0], config, path, dtypes)
    if missing := sorted(where.keys() - found.keys()):
        raise ValueError(f"{files[0].parent} lacks {missing[:3]} ({len(missing)} tensors) that config.json speaks of.")
    surplus = sorted(name for name in found.keys() - where.keys() if not _BUFFER.fullmatch(name))
    if surplus == [_TOP["head"]]:  # tied, and stored all the same
        _check_tied(found)
        surplus = []
    if surplus:
        raise ValueError(f"{found[surplus[0]]} has {surplus[:3]} ({len(surplus)} tensors) that config.json lacks.")
    return where, dtypes, sorted(found.keys() - where.keys())


def _check_tensor(there: str, tensor: Any, name: str, config: ModelConfig, path: Path, dtypes) -> None:
    shape, expected = tuple(tensor.get_shape()), _shape(name, config)
    if shape != expected:
        raise ValueError(f"{path}: {there} has shape {shape}, config.json says {expected}.")
    if tensor.get_dtype() not in DTYPES:
        raise ValueError(f"{path}: {there} is {tensor.get_dtype()}, expected one of {', '.join(DTYPES)}.")
    dtype = DTYPES[tensor.get_dtype()]
    if dtypes.setdefault(name, dtype) != dtype:
        raise ValueError(f"{path}: {there} is {tensor.get_dtype()}, other layers are {_NAMES[dtypes[name]]}.")


def _check_tied(found: dict[str, Path]) -> None:
    with ExitStack() as stack:
        names = (_TOP["embed"], _TOP["head"])
        files = [stack.enter_context(_opened(found[name])) for name in names]
        slices = [file.get_slice(name) for file, name in zip(files, names, strict=True)]
        if any(not np.array_equal(a, b) for (_, a), (_, b) in zip(*map(_pieces, slices), strict=True)):
            raise ValueError("config.json ties the embeddings, but lm_head.weight differs: set tie_word_embeddings.")
