"""Import a Hugging Face checkpoint: config.json, safetensors and tokenizer.json into a checkpoint folder.

`architectures` has the classes that are read. Weights keep their precision; elements move, none is changed.

Dims: D d_model, N heads, K key-value heads, H d_head, F d_ff, V vocabulary, L layers.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from upalm.checkpoints.arrays import to_arrays
from upalm.checkpoints.folder import WEIGHTS, describe
from upalm.checkpoints.lineage import CheckpointInfo
from upalm.data.hf_tokenizer import JsonTokenizer
from upalm.data.roles import Roles, SentinelChoice, choose_roles
from upalm.data.tokenizer import Tokenizer
from upalm.hub_client import client_errors
from upalm.interop import prompt_format
from upalm.interop.architectures import (
    COHERE,
    Architecture,
    Settings,
    architecture_of,
    longest_row_is,
    model_config,
)
from upalm.interop.files import (
    DTYPE_NAMES,
    DTYPES,
    ArrayWriter,
    check_new,
    new_folder,
    open_safetensors,
    pieces,
    read_json,
    refuse_pointer,
)
from upalm.interop.folding import centre, fold_layernorm, is_centred
from upalm.interop.weights import BUFFER, TOP, from_hf_layout, hf_names, hf_shape
from upalm.model.config import ModelConfig
from upalm.model.palm import empty_model

Progress = Callable[[int, int], None]
"""Receives the number of finished items, and of all."""


Fetch = Callable[[Sequence[str]], object]
"""Brings the files of these names into the folder of a checkpoint, those of them that there are."""


def _weight_files(source: Path, fetch: Fetch) -> list[Path]:
    """The safetensors files of a checkpoint, in order, found as transformers finds them.

    Raises:
        ValueError: none, one that is missing, or an index that points out of the folder.
    """
    fetch(["model.safetensors"])
    if (source / "model.safetensors").is_file():
        return [source / "model.safetensors"]
    index = source / "model.safetensors.index.json"
    if not index.is_file():
        raise ValueError(
            f"no model.safetensors and no {index.name} in {source}: only safetensors are read. Weights of another kind "
            "(.bin) become them when transformers opens them (from_pretrained) and saves them (save_pretrained)."
        )
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise ValueError(f"{index} is damaged: expected a weight_map of file names.")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} points to {name!r}: expected the name of a .safetensors file beside it.")
    fetch(names)
    for name in names:
        if not (source / name).is_file():
            raise ValueError(f"{index} names {name}, which is not there.")
    return [source / name for name in names]


# --- Import ---------------------------------------------------------------------------------------


class Imported(NamedTuple):
    """Result of an import."""

    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer
    dtype: str
    """Precision of the weights, which an import keeps."""
    ignored: list[str]
    """Arrays that are computed, not learnt, and are left out."""
    longest_row_is: str
    """Setting of the source that `config.seq_len`, the longest row, was taken from."""


def import_hf(
    source: str | Path,
    dest: Path,
    *,
    norm: Literal["keep", "rms"] = "keep",
    sentinels: SentinelChoice = "auto",
    progress: Progress = lambda done, total: None,
) -> Imported:
    """Read a checkpoint of transformers into a folder that `load_model`, training and sampling open.

    Weights go from file to file a piece at a time, in the precision they have.

    Args:
        source: a folder with config.json, safetensors and tokenizer.json, or a name on the Hugging Face hub.
        dest: folder to make.
        norm: `rms` folds Cohere's LayerNorm into RMS norm (see `fold_layernorm`), in fp32; it cannot be exported back.
        sentinels: ids that serve as sentinels; see `roles.choose_roles`.
        progress: called with tensors done and in all.

    Raises:
        ValueError: an architecture that is not in the table, adapters, missing, surplus, misshapen or damaged arrays,
            weights that contradict config.json, a tokenizer that is not lossless or larger than the embedding, a name
            that the hub does not give, or a destination that exists.
    """
    check_new(dest)
    source, fetch = _open_source(source)
    if (source / "adapter_config.json").is_file():
        raise ValueError(f"{source} is an adapter (adapter_config.json): merge it into its base model first.")
    settings = read_json(source / "config.json")
    if "format" in settings and "model" in settings:
        raise ValueError(f"{source} is a checkpoint of upalm, which every command opens as it is: nothing to import.")
    row = architecture_of(settings, source)
    unfolded = model_config(settings, source)
    if norm == "rms" and row is not COHERE:
        raise ValueError(f"{source} is a {row.name}: only {COHERE.name} has a LayerNorm to fold; leave --norm out.")
    config = fold_layernorm(unfolded) if norm == "rms" else unfolded
    own_roles = source / JsonTokenizer.ROLES_FILE
    info = _prompt_format(source)

    def roles_of(content: bytes) -> Roles:
        if own_roles.is_file() and sentinels == "auto":
            return Roles.read(own_roles.read_bytes())
        bos_id, eos_id = (_token_id(settings, key) for key in ("bos_token_id", "eos_token_id"))
        return choose_roles(content, bos_id=bos_id, eos_id=eos_id, n_rows=config.vocab_size, sentinels=sentinels)

    tokenizer = import_tokenizer(source, config.vocab_size, roles_of, _companions(source))
    files = _weight_files(source, fetch)  # last: they are what takes long to fetch
    places, dtypes, ignored = _check_tensors(files, unfolded, row)
    with new_folder(dest) as folder:
        arrays = {}
        for name, leaf in to_arrays(empty_model(config)).items():
            changes = norm == "rms" and is_centred(name, config)
            dtype = dtypes.get(name, dtypes["embed"])  # a head that was tied is of the embeddings
            arrays[name] = np.dtype(np.float32) if changes else dtype, leaf.shape
        compute = "float32" if all(dtype == np.float32 for dtype in dtypes.values()) else "bfloat16"
        config = replace(config, compute_dtype=compute)
        run = {"imported": row.name, "norm": norm}
        describe(folder, config, tokenizer, run, info)
        with closing(ArrayWriter(folder / WEIGHTS, arrays)) as writer:
            _copy(files, places, writer, unfolded, row, norm == "rms", progress)
    dtype = "/".join(sorted({DTYPE_NAMES[d] for d in dtypes.values()}))
    return Imported(dest, config, tokenizer, dtype, ignored, longest_row_is(settings, row))


def _copy(
    files: list[Path],
    places: dict[str, tuple[str, int]],
    writer: ArrayWriter,
    config: ModelConfig,
    row: Architecture,
    folds: bool,
    progress: Progress,
) -> None:
    """Write every tensor into its place, with `folds` centred.

    One file is open at a time: what has been read of a file stays in memory until it is closed.
    """
    n_done = 0

    def put(hf_name: str, tensor: Any) -> None:
        name, layer = places[hf_name]
        changes = folds and is_centred(name, config)
        if layer >= 0:
            array = from_hf_layout(name, tensor[:], config, row)
            writer.write(name, layer * array.size, centre(array) if changes else array)
            return
        for first, rows in pieces(tensor):
            writer.write(name, first, centre(rows) if changes else rows)
            if name == "embed" and folds and config.tied_head:
                writer.write("head", first, rows)

    for path in files:
        with open_safetensors(path) as file:
            for hf_name in file.keys():
                if hf_name in places:
                    put(hf_name, file.get_slice(hf_name))
                    n_done += 1
                    progress(n_done, len(places))


def _open_source(source: str | Path) -> tuple[Path, Fetch]:
    """Return a local folder, into which a name on the hub is fetched without its weights, and the way to fetch more."""
    if Path(source).is_dir():
        return Path(source), lambda names: None
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)):
        raise ValueError(f"no folder {source}; a name on the Hugging Face hub is OWNER/NAME.")
    folder = _fetch_from_hub(str(source), COMPANIONS)
    return folder, partial(_fetch_from_hub, str(source), revision=folder.name)  # the commit that the others are of


def _fetch_from_hub(name: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Fetch files from the top folder of a repository; others, such as onnx/, hold the same weights again."""
    try:
        import huggingface_hub
    except ImportError as e:
        raise ValueError(f"no folder {name}; as a name on the hub it needs: pip install 'upalm[hf]'.") from e
    try:
        found = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]
        )
    except client_errors() as e:
        reasons = [" ".join(str(error).split()) or type(error).__name__ for error in (e, e.__cause__) if error]
        raise ValueError(f"no folder {name}, and the hub did not give it: {'; '.join(reasons)}") from e
    return Path(found)


COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.md", "*.model", "LICENSE*", "NOTICE*", "COPYING*")
"""Patterns of the files that come in with a checkpoint and go out with it, beside weights and tokenizer.json."""

_OF_OUR_EXPORTS = (prompt_format.FILE, JsonTokenizer.ROLES_FILE)
_NOT_COMPANIONS = ("*.index.json", JsonTokenizer.FILE, *_OF_OUR_EXPORTS)


def _is_own_export(source: Path) -> bool:
    return any((source / name).is_file() for name in _OF_OUR_EXPORTS)


def _prompt_format(source: Path) -> CheckpointInfo:
    """Return what an export of ours says of its training; others had no gaps, and exports of before do not say."""
    if (source / prompt_format.FILE).is_file():
        return prompt_format.read(source / prompt_format.FILE)
    return CheckpointInfo(gaps_trained=None if _is_own_export(source) else False)


def _companions(source: Path) -> dict[str, bytes]:
    left_out = (*_NOT_COMPANIONS, "README.md") if _is_own_export(source) else _NOT_COMPANIONS
    paths = [path for path in sorted(source.iterdir()) if path.is_file() and not path.name.startswith(".")]
    taken = (p for p in paths if any(map(p.match, COMPANIONS)) and not any(map(p.match, left_out)))
    return {path.name: path.read_bytes() for path in taken}


def import_tokenizer(
    folder: Path, n_embeddings: int, roles_of: Callable[[bytes], Roles], companions: Mapping[str, bytes]
) -> JsonTokenizer:
    """Open the tokenizer.json of a folder.

    Args:
        folder: of the file.
        n_embeddings: rows of the model's table.
        roles_of: chooses the roles of a file's content.
        companions: files that go out with it.

    Raises:
        ValueError: no tokenizer, or one that is damaged, not lossless, or larger than the table.
    """
    path = folder / JsonTokenizer.FILE
    if not path.is_file():
        raise ValueError(
            f"no {path}: the tokenizer is read from it. One of another kind (tokenizer.model) becomes it when "
            "transformers opens it (AutoTokenizer.from_pretrained) and saves it (save_pretrained)."
        )
    refuse_pointer(path)
    content = path.read_bytes()
    try:
        tokenizer = JsonTokenizer(content, roles_of(content), companions)
        if tokenizer.vocab_size > n_embeddings:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} subwords, the model {n_embeddings} embeddings: they do not "
                "belong together."
            )
        tokenizer.check_lossless()
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
    return tokenizer


def _token_id(settings: Settings, key: str) -> int | None:
    """Return the first of the ids that config.json has for a special token.

    Raises:
        ValueError: an id that is no number.
    """
    value = settings.get(key)
    first = value[0] if isinstance(value, list) and value else value
    if first is None or first == []:
        return None
    if not isinstance(first, int) or isinstance(first, bool) or first < 0:
        raise ValueError(f"config.json has {key} {value!r}, expected an id.")
    return first


def _check_tensors(
    files: list[Path], config: ModelConfig, row: Architecture
) -> tuple[dict[str, tuple[str, int]], dict[str, np.dtype], list[str]]:
    """Return the place of each tensor, the dtype of each array here, and names that are not weights.

    Raises:
        ValueError: missing, surplus, twice, misshapen, of a dtype that is not read, or layers that differ in dtype.
    """
    places, paths, dtypes = hf_names(config, row), {}, {}
    for path in files:
        with open_safetensors(path) as file:
            for hf_name in file.keys():
                if hf_name in paths:
                    raise ValueError(f"{hf_name} is both in {paths[hf_name]} and in {path}.")
                paths[hf_name] = path
                if hf_name in places:
                    _check_tensor(hf_name, file.get_slice(hf_name), places[hf_name][0], config, path, dtypes)
    if missing := sorted(places.keys() - paths.keys()):
        raise ValueError(f"{files[0].parent} lacks {missing[:3]} ({len(missing)} tensors) that config.json speaks of.")
    surplus = sorted(name for name in paths.keys() - places.keys() if not BUFFER.fullmatch(name))
    if surplus == [TOP["head"]]:  # tied, and stored all the same
        _check_tied(paths)
        surplus = []
    if surplus:
        raise ValueError(f"{paths[surplus[0]]} has {surplus[:3]} ({len(surplus)} tensors) that config.json lacks.")
    return places, dtypes, sorted(paths.keys() - places.keys())


def _check_tensor(hf_name: str, tensor: Any, name: str, config: ModelConfig, path: Path, dtypes) -> None:
    shape, expected = tuple(tensor.get_shape()), hf_shape(name, config)
    if shape != expected:
        raise ValueError(f"{path}: {hf_name} has shape {shape}, config.json says {expected}.")
    if tensor.get_dtype() not in DTYPES:
        raise ValueError(f"{path}: {hf_name} is {tensor.get_dtype()}, expected one of {', '.join(DTYPES)}.")
    dtype = DTYPES[tensor.get_dtype()]
    if dtypes.setdefault(name, dtype) != dtype:
        raise ValueError(f"{path}: {hf_name} is {tensor.get_dtype()}, other layers are {DTYPE_NAMES[dtypes[name]]}.")


def _check_tied(paths: dict[str, Path]) -> None:
    with ExitStack() as stack:
        names = (TOP["embed"], TOP["head"])
        files = [stack.enter_context(open_safetensors(paths[name])) for name in names]
        slices = [file.get_slice(name) for file, name in zip(files, names, strict=True)]
        if any(not np.array_equal(a, b) for (_, a), (_, b) in zip(*map(pieces, slices), strict=True)):
            raise ValueError("config.json ties the embeddings, but lm_head.weight differs: set tie_word_embeddings.")
