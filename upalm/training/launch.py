"""`run`: a training run from its settings, alone or as one of several processes."""

import os
import shlex
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, chdir
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import AbstractMesh, Mesh

from upalm import ul2r
from upalm.checkpoints.config_json import description, split_step
from upalm.checkpoints.folder import export_run, load_model, open_checkpoint
from upalm.data.config import built_folders, open_source, text_source
from upalm.data.hf_tokenizer import has_tokenizer, load_tokenizer
from upalm.data.tokenizer import SentencePiece, Tokenizer
from upalm.distributed import processes, runtime
from upalm.distributed.processes import ProcessConfig
from upalm.distributed.runtime import enable_compilation_cache
from upalm.distributed.sharding import check_rows
from upalm.files import is_remote
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder, empty_model, param_shardings
from upalm.training import metrics
from upalm.training.config import Continue, TrainConfig, from_json, to_json
from upalm.training.loop import fit
from upalm.training.resume import LazyModel, check_folder, check_shared, resumed_folder


def run(config: TrainConfig, describe: Callable[[TrainConfig, ModelConfig, Mesh | None], str] | None = None) -> Path:
    """Prepare text, tokenizer and weights, and train. Returns the run folder.

    Args:
        config: settings of the run.
        describe: returns what to print before the first step, of a run of one process.

    Raises:
        ValueError: settings, data or folders that do not fit, each with what to do.
        Interrupted: see `fit`.
        FloatingPointError: see `fit`.
        OSError: see `fit`.
    """
    config.processes.connect()
    enable_compilation_cache()
    with ExitStack() as stack:
        stack.push(_end_with_its_peers)
        processes.agree(config.shared() | {"versions": runtime.versions()})
        with processes.raising_everywhere():
            mesh = config.mesh.build()
            metrics.check_writers(config.logging.writers)
        if mesh is not None:
            stack.enter_context(jax.set_mesh(mesh))
        check_folder(config)
        check_shared(config)
        model, tokenizer = prepare(config, mesh)
        processes.agree({"tokenizer": tokenizer.hash})
        on_mesh = f", {mesh.size} devices {dict(mesh.shape)} of {jax.process_count()} processes" if mesh else ""
        _say(f"{model.config.n_params / 1e6:.2f}M parameters, vocabulary {tokenizer.vocab_size}{on_mesh}")
        with processes.raising_everywhere():
            train, validation = open_source(config.data, tokenizer)
        n_train, n_validation = (sum(corpus.n_tokens for corpus, _ in split) for split in (train, validation))
        _say(f"{n_train:,} training and {n_validation:,} validation tokens")
        if describe is not None and jax.process_count() == 1:
            _say(describe(config, model.config, mesh))
        fit(config, model, tokenizer, train, validation)
        if processes.is_first():
            print(summary(config, train[0].corpus.is_supervised), flush=True)
    return config.out


def run_once(config: TrainConfig) -> Path:
    """Run to the end, or return at once if that is done. Returns the folder of the last step, RUN/steps/N.

    Raises:
        ValueError: the folder holds another run; otherwise see `run`.
    """
    config.processes.connect()  # before the check, which asks JAX for the number of this process
    check_folder(config)
    kept = config.checkpoints.folder or config.out
    checkpoint = epath.Path(kept) / "steps" / str(config.n_steps)
    if not checkpoint.is_dir():
        run(config)
    return Path(config.out if is_remote(kept) else kept) / "steps" / str(config.n_steps)


def run_and_export(config: TrainConfig) -> Path:
    """`run`, and then export weights to share to `config.out`/export. Returns the run folder.

    Several processes export nothing and say so: their run folder is exported by one process, with `export_run`.

    Raises:
        ValueError: see `run`.
    """
    folder = run(config)
    if jax.process_count() > 1:
        _say(f"no export by several processes: call upalm.checkpoints.folder.export_run({str(folder)!r}, ...) in one")
    else:
        export_run(folder, folder / "export")
        _say(f"weights to share: {folder / 'export'}")
    return folder


def _say(message: str) -> None:
    if processes.is_first():
        print(message, flush=True)


def summary(config: TrainConfig, is_supervised: bool) -> str:
    """Describe a finished run: its validation loss, where its checkpoint is, and what to run next.

    Args:
        config: of the run.
        is_supervised: whether it trained on (inputs, targets), where the config's mixture has no say.
    """
    losses = [row["validation_loss"] for row in metrics.read(config.out / "metrics.jsonl") if "validation_loss" in row]
    loss = f", validation loss {losses[-1]:.3f} nats per token" if losses else ""
    folder = config.checkpoints.folder or config.out
    mixture = ul2r.SUPERVISED if is_supervised else ul2r.mixture(config.data.mixture)
    fills_gaps = any(denoiser.n_sentinels(config.data.seq_len) for denoiser in mixture)
    use = ["infill", "--text", "before <extra_id_0> after"] if fills_gaps else ["sample", "--text", "Once"]
    checkpoint = ["--checkpoint", str(config.out)]
    return (
        f"finished {config.n_steps} steps{loss}\n"
        f"checkpoint: {folder}/steps/{config.n_steps}\n"
        f"try: {shlex.join(['upalm', *use, *checkpoint])}\n"
        f"measure: {shlex.join(['upalm', 'eval', *checkpoint, *_held_out_words(config, is_supervised)])}"
    )


def _held_out_words(config: TrainConfig, is_supervised: bool) -> list[str]:
    """Options that name the run's text to `upalm eval`; a placeholder if it has none: shards, or (inputs, targets)."""
    data = config.data
    if is_supervised or built_folders(data.source):
        return ["--data", "TEXT"]
    include = ["--include", *data.include] if data.include else []
    skip = ["--skip-undecodable"] if data.skip_undecodable else []
    source = str(Path(data.source).absolute()) if Path(data.source).exists() else data.source  # `rerun` is elsewhere
    return ["--data", source, *include, *skip]


def rerun(folder: Path, changes: dict[str, Any]) -> Path:
    """Resume the run in `folder`, or repeat it with changed settings such as another `out`.

    Relative paths of its settings start in the directory where the run began, those of `changes` in this one. A run
    that is repeated keeps its checkpoints in its own `out`. Addresses of several processes are not taken over.

    Raises:
        ValueError: no run in the folder, one of another version, or a single checkpoint of it.
    """
    given, (folder, step) = folder, split_step(folder)
    if step is not None:
        raise ValueError(
            f"{given} is a checkpoint, expected the folder of a run: --from {folder} resumes it from its newest one."
        )
    stored = description(folder).get("settings")
    if stored is None:
        raise ValueError(f"{folder} holds no settings of a run: it is an import, an export, or of an older version.")
    directory = Path(stored.get("directory", "."))
    settings = {name: value for name, value in stored.items() if name != "directory"}
    for name, value in ({"out": folder} | changes).items():  # the folder may have been moved
        settings[name] = to_json(value.absolute() if isinstance(value, Path) else value)
    is_elsewhere = Path(settings["out"]).resolve() != folder.resolve()
    with chdir(directory if directory.is_dir() else "."):
        config = from_json(TrainConfig, settings)
        if is_elsewhere:
            config = replace(config, checkpoints=replace(config.checkpoints, folder=""))
        if config.processes.coordinator:  # they are those of process 0, which every process would claim to be
            config = replace(config, processes=ProcessConfig(heartbeat_seconds=config.processes.heartbeat_seconds))
        return run(config)


def _end_with_its_peers(kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
    """End at once with an error of this process alone, or when another is gone: waiting for them would never end."""
    if not isinstance(error, Exception) or jax.process_count() == 1 or processes.is_everywhere(error):
        return
    if isinstance(error, FloatingPointError):
        return  # the loss is the same on all processes
    me, reason = f"error: process {jax.process_index()}", str(error).strip().split("\n")[0][:300]
    advice = "Start the same command again on all hosts: it resumes from the newest checkpoint."
    if isinstance(error, ValueError):
        what = f"{me}: {error}"  # which says what to do
    elif isinstance(error, OSError):
        what = f"{me}: {error} {advice}"
    elif isinstance(error, jax.errors.JaxRuntimeError):
        what = f"{me} failed, or lost another process of the run ({reason}). {advice}"
    else:
        what = f"{''.join(traceback.format_exception(error))}{me} ended. {advice}"
    print(what, file=sys.stderr, flush=True)
    os._exit(1)


def prepare(config: TrainConfig, mesh: Mesh | None = None) -> tuple[LazyModel, Tokenizer]:
    """Return the model to start from, whose weights are read or drawn straight into their shards, and the tokenizer.

    A run that is resumed needs nothing of the checkpoint that it once started from, where its config.json is seen.

    Raises:
        ValueError: a checkpoint, vocabulary, mesh or row length that does not fit.
    """
    with processes.raising_everywhere():  # to read a checkpoint that one process lacks, the others would wait for it
        shape, tokenizer = _open_start(config, mesh)
    return LazyModel(shape, partial(_weights, config, shape, mesh)), tokenizer


def _open_start(config: TrainConfig, mesh: Mesh | None) -> tuple[ModelConfig, Tokenizer]:
    """Shape of the model that the run starts from, and its tokenizer, without weights."""
    if isinstance(config.start, Continue):
        model, tokenizer, _ = open_checkpoint(resumed_folder(config) or config.start.checkpoint)
        shape = config.start.reshaped(model)
    else:
        shape, tokenizer = config.start.model, None  # to train one takes a while, so refusals come first
    if config.data.seq_len > shape.seq_len:
        raise ValueError(
            f"rows of {config.data.seq_len} are longer than the model's {shape.seq_len} (of an imported model, the "
            f"positions that it was trained for or its sliding window): set --data.seq-len {shape.seq_len}."
        )
    check_mesh(config, shape, mesh)
    tokenizer = tokenizer or _tokenizer(config, shape.vocab_size)
    if tokenizer.vocab_size > shape.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} subwords, the model {shape.vocab_size} embeddings: "
            f"set --start.model.vocab-size {tokenizer.vocab_size}, or build the shards with a smaller --vocab-size."
        )
    return shape, tokenizer


def _weights(config: TrainConfig, shape: ModelConfig, mesh: Mesh | None) -> Decoder:
    """Weights that the run starts from: a checkpoint's, or random ones."""
    if isinstance(config.start, Continue):
        return load_model(config.start.checkpoint, mesh, remat=shape.remat).model
    init = partial(Decoder, shape, key=jax.random.key(config.seed))
    if mesh is None:
        return init()
    return jax.jit(init, out_shardings=param_shardings(empty_model(shape), mesh))()


def check_mesh(config: TrainConfig, model: ModelConfig, mesh: Mesh | AbstractMesh | None) -> None:
    """Refuse a mesh that does not divide the model or the batch.

    Raises:
        ValueError: the two numbers that do not divide.
    """
    if mesh is None:
        return
    for names, axis in ((("n_heads", "d_head"), "model"), (("d_ff",), "model"), (("d_model",), "data")):
        sizes = [getattr(model, name) for name in names]
        if all(n % mesh.shape[axis] for n in sizes):
            found = " and ".join(f"{name} {n}" for name, n in zip(names, sizes, strict=True))
            raise ValueError(f"{found}: no multiple of the {mesh.shape[axis]} devices of the mesh's {axis} axis.")
    for n in config.data.batch_sizes():
        check_rows(mesh, n, config.accumulation)


def _tokenizer(config: TrainConfig, vocab_size: int) -> Tokenizer:
    """Tokenizer of the run that is resumed, of built shards, or trained on the text."""
    if has_tokenizer(config.out):
        return load_tokenizer(config.out)
    if folders := built_folders(config.data.source):
        return load_tokenizer(next(iter(folders)))
    corpus = text_source(config.data).load()
    order = np.random.default_rng(config.seed).permutation(len(corpus.train))
    return SentencePiece.train((corpus.train[i].text for i in order), vocab_size)
