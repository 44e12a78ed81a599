"""Open checkpoints in, standard checkpoints out: the Cohere family of Hugging Face (Command-R, Aya).

Its blocks are PaLM's: attention and SwiGLU side by side under one norm, no biases, tied embeddings. With one key-value
head it is PaLM with LayerNorm. Rotary pairs lie next to each other there and half a head apart here; the weights of
queries and keys are permuted for it, once, which rounds nothing.

Dims: D d_model, N heads, K key-value heads, H d_head, F d_ff, V vocabulary, L layers.
"""

import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from upalm import __version__
from upalm.checkpoint import WEIGHTS, describe, description, empty_model, load_model, open_checkpoint, to_arrays
from upalm.model import ModelConfig
from upalm.tokenizer import Tokenizer
from upalm.tokenizer_json import JsonTokenizer, Roles, choose_roles, companions, to_json

ARCHITECTURE = "CohereForCausalLM"
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SHARD_BYTES = 5_000_000_000
_PIECE_BYTES = 64 << 20
Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    pass


# --- Names and shapes -----------------------------------------------------------------------------


class _Weight(NamedTuple):
    """Where a weight of a block is, there."""

    name: str
    shape: tuple[str, ...]
    """There, in letters; joined axes are written together."""


_BLOCK = {
    "norm": _Weight("input_layernorm.weight", ("D",)),
    "wq": _Weight("self_attn.q_proj.weight", ("NH", "D")),
    "wk": _Weight("self_attn.k_proj.weight", ("KH", "D")),
    "wv": _Weight("self_attn.v_proj.weight", ("KH", "D")),
    "wo": _Weight("self_attn.o_proj.weight", ("D", "NH")),
    "w_gate": _Weight("mlp.gate_proj.weight", ("F", "D")),
    "w_up": _Weight("mlp.up_proj.weight", ("F", "D")),
    "w_down": _Weight("mlp.down_proj.weight", ("D", "F")),
    "q_norm": _Weight("self_attn.q_norm.weight", ("N", "H")),
    "k_norm": _Weight("self_attn.k_norm.weight", ("K", "H")),
}
_ROTARY = {"wq", "wk", "q_norm", "k_norm"}
_TOP = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_BUFFER = re.compile(r".*\.rotary_emb\.inv_freq")


def _sizes(config: ModelConfig) -> dict[str, int]:
    named = {"D": config.d_model, "N": config.n_heads, "K": config.n_kv_heads, "H": config.d_head}
    return named | {"F": config.d_ff, "V": config.vocab_size}


def _names(config: ModelConfig) -> dict[str, tuple[str, int]]:
    """Name there -> (name here, layer; -1 outside the blocks)."""
    here = to_arrays(empty_model(config))
    names = {there: (name, -1) for name, there in _TOP.items() if name in here}
    for name, weight in _BLOCK.items():
        if f"blocks.{name}" in here:
            names |= {f"model.layers.{i}.{weight.name}": (f"blocks.{name}", i) for i in range(config.n_layers)}
    return names


def _shape(name: str, config: ModelConfig) -> tuple[int, ...]:
    """The shape there of a weight that has this name here."""
    sizes = _sizes(config)
    if not name.startswith("blocks."):
        return (sizes["D"],) if name == "norm" else (sizes["V"], sizes["D"])
    letters = _BLOCK[name.removeprefix("blocks.")].shape
    return tuple(math.prod(sizes[letter] for letter in joined) for joined in letters)


def _halves(d_head: int) -> np.ndarray:
    """Place there of each number of a head here: the first of each pair, then the second."""
    return np.concatenate([np.arange(0, d_head, 2), np.arange(1, d_head, 2)])


def _here(name: str, there: np.ndarray, config: ModelConfig) -> np.ndarray:
    """A layer's weight as it is here. Elements move, none is changed."""
    block = name.removeprefix("blocks.")
    if block == name or there.ndim == 1:
        return there
    if block in ("q_norm", "k_norm"):
        return there[:, _halves(config.d_head)]
    if block in ("wq", "wk", "wv"):
        heads = there.reshape(-1, config.d_head, config.d_model)
        heads = heads[:, _halves(config.d_head)] if block in _ROTARY else heads
        return heads.transpose(2, 0, 1)
    return there.T.reshape(config.n_heads, config.d_head, -1) if block == "wo" else there.T


def _there(name: str, here: np.ndarray, config: ModelConfig) -> np.ndarray:
    """The inverse of `_here`."""
    block = name.removeprefix("blocks.")
    if block == name or here.ndim == 1:
        return here
    back = np.argsort(_halves(config.d_head))
    if block in ("q_norm", "k_norm"):
        return here[:, back]
    if block in ("wq", "wk", "wv"):
        heads = here.transpose(1, 2, 0)
        return (heads[:, back] if block in _ROTARY else heads).reshape(-1, config.d_model)
    return here.reshape(-1, config.d_model).T if block == "wo" else here.T


# --- LayerNorm as RMS norm ------------------------------------------------------------------------


def fold_layernorm(config: ModelConfig) -> ModelConfig:
    """The same function with RMS norm, for weights that `centred` has been over.

    LayerNorm takes the mean off the residual stream. If all that is written to the stream has mean 0 then so has the
    stream, and LayerNorm is RMS norm: exact but for rounding. The output embeddings are read, not written, so they
    stay as they are and are no longer tied.
    """
    return ModelConfig(**{**config.__dict__, "norm": "rms", "tied_head": False})


def is_centred(name: str, config: ModelConfig) -> bool:
    """Whether folding changes a weight: what is written to the residual stream, and what is under a query-key norm."""
    return name in ("embed", "blocks.wo", "blocks.w_down") or (
        name in ("blocks.wq", "blocks.wk") and config.qk_norm == "norm"
    )


def centred(here: np.ndarray) -> np.ndarray:
    """A weight whose output, the last axis, has mean 0."""
    wide = here.astype(np.float64)
    return (wide - wide.mean(-1, keepdims=True)).astype(np.float32)


# --- Files ----------------------------------------------------------------------------------------


class ArrayWriter:
    """A safetensors file that is written piece by piece, so that no array need be in memory whole."""

    def __init__(self, path: Path, arrays: dict[str, tuple[np.dtype, tuple[int, ...]]]):
        header: dict[str, Any] = {"__metadata__": {"format": "upalm"}}
        at = 0
        for name, (dtype, shape) in arrays.items():
            n_bytes = dtype.itemsize * math.prod(shape)
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + n_bytes]}
            at += n_bytes
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._file = path.open("wb")
        self._file.write(len(encoded).to_bytes(8, "little") + encoded)
        self._file.truncate(8 + len(encoded) + at)
        self._arrays, self._starts = arrays, {n: 8 + len(encoded) + header[n]["data_offsets"][0] for n in arrays}

    def write(self, name: str, first: int, array: np.ndarray) -> None:
        """Elements `first` and after of an array, in C order."""
        dtype, _ = self._arrays[name]
        self._file.seek(self._starts[name] + first * dtype.itemsize)
        self._file.write(np.ascontiguousarray(array, dtype).view(np.uint8).data)

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


@contextmanager
def new_folder(dest: Path) -> Iterator[Path]:
    """A folder beside `dest` that becomes it at the end; if anything fails, nothing stays behind.

    Raises:
        ValueError: `dest` exists.
    """
    if dest.exists():
        raise ValueError(f"{dest} exists: choose another place.")
    dest.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", dir=dest.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(dest)
    except BaseException:
        shutil.rmtree(folder)
        raise


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"no {path}.")
    try:
        found = json.loads(path.read_bytes())
    except ValueError as e:
        raise ValueError(f"{path} is damaged: {e}.") from e
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: expected an object.")
    return found


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
        describe(folder, config, tokenizer, run)
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
            array = _here(name, tensor[:], tied)
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


def _pieces(tensor: Any) -> Iterator[tuple[int, np.ndarray]]:
    """A tensor by runs of rows, each with the number of elements before it."""
    n_rows, *row = tensor.get_shape()
    step = max(1, _PIECE_BYTES // (4 * math.prod(row)))
    for at in range(0, n_rows, step):
        yield at * math.prod(row), tensor[at : min(at + step, n_rows)]


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


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        file = safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as e:
        raise ValueError(f"{path} is damaged or truncated: {e}.") from e
    with file as entered:
        yield entered


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
        tokenizer = JsonTokenizer(content, roles, companions(source), gaps_trained=None if stored.is_file() else False)
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
        (folder / "README.md").write_text(_card(found, config, tokenizer))
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
            _, tokenizer = open_checkpoint(checkpoint)
            file = stack.enter_context(_opened(weights))
            slices = {name: file.get_slice(name) for name in file.keys()}
        else:
            model, tokenizer = load_model(checkpoint)
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
    array = _there(name, arrays(name, layer), config)
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


def _card(found: dict[str, Any], config: ModelConfig, tokenizer: Tokenizer) -> str:
    """The model card: what it is, how it was trained and on what, how to prompt it, whom to cite."""
    run, symbols = found["run"], tokenizer.symbols
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
    gaps = "after its inputs, EOS, " if tokenizer.inputs_eos else ""
    return f"""---
library_name: transformers
tags: [upalm, ul2r, infilling]
---

# A causal language model{", continued with UL2R" if tokenizer.gaps_trained else ""}

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
