"""Begin or resume: the state that a run starts from, and refusals of folders that hold another run."""

import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from etils import epath
from jax.sharding import Mesh

from upalm.checkpoints import lock
from upalm.checkpoints.config_json import checkpoints_folder, description, split_step
from upalm.checkpoints.manager import Checkpoints
from upalm.data.config import built_folders
from upalm.distributed import processes
from upalm.distributed.sharding import shapes, shardings
from upalm.files import is_remote, writing_problem
from upalm.model.config import ModelConfig
from upalm.model.palm import LOGICAL_AXES, Decoder, empty_model
from upalm.training.config import TrainConfig, differences
from upalm.training.step import TrainState

_LEFT_BY_A_KILL = {"lock", "steps"}
"""Files of a run that was killed before it wrote config.json, beside half of that."""


def check_folder(config: TrainConfig) -> None:
    """Refuse a run folder that is in use or holds something else; another run only unless `changed` is set.

    The first process decides, since it alone writes there.

    Raises:
        ValueError: the process that uses the folder, the settings that differ, or that it is no folder of a run.
    """
    with processes.raising_everywhere():
        if processes.is_first():
            _check_folder(config)


def check_shared(config: TrainConfig) -> None:
    """Refuse a folder of checkpoints that only some of the processes see: each writes its part of a checkpoint there.

    To be called once and first: a network disk may remember for a while that the folder was not there.

    Raises:
        ValueError: the first process that sees another folder.
    """
    if jax.process_count() == 1:
        return
    folder = config.checkpoints.folder or config.out
    sign = epath.Path(folder) / f"{processes.broadcast_from_first(secrets.token_hex(8))}.new"
    with lock.hold(folder):  # which makes the folder, and removes it if it stays empty
        with processes.raising_everywhere():
            if processes.is_first():
                sign.write_bytes(b"")
        try:
            with processes.raising_everywhere():
                if not sign.exists():
                    raise ValueError(
                        f"{folder} here is another folder than on process 0: "
                        "set --checkpoints.folder to a disk that all hosts see, or to a bucket."
                    )
        finally:
            if processes.is_first():
                sign.unlink()


def _check_folder(config: TrainConfig) -> None:
    for folder in config.folders():
        lock.check_free(folder)
    out, elsewhere = config.out, config.checkpoints.folder
    for option, folder in (("--out", out), ("--checkpoints.folder", elsewhere)):
        if folder and not is_remote(folder) and (problem := writing_problem(Path(folder))):
            raise ValueError(f"{option} {folder}: {problem}: choose another folder.")
    source = Path(config.data.source)
    if source.is_dir() and not built_folders(str(source)) and out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"--out {out} lies in the training text, {source}: choose another folder.")
    run_folder, _ = split_step(out.absolute())
    if run_folder != out.absolute():
        raise ValueError(f"--out {out} is a place of checkpoints of the run {run_folder}: choose another --out.")
    if (out / "config.json").is_file():
        _refuse_changes(config, description(out)["run"], out)
    elif out.exists() and (others := {p.name for p in out.iterdir() if p.suffix != ".new"} - _LEFT_BY_A_KILL):
        raise ValueError(f"--out {out} holds other files, such as {min(others)}: choose another --out.")


def check_checkpoints(
    config: TrainConfig, checkpoints: Checkpoints, about: dict[str, Any], tokenizer_hashes: tuple[str, ...]
) -> None:
    """Refuse checkpoints of another run, by what the newest readable one says of its run.

    Args:
        config: of the run.
        checkpoints: of the run.
        about: what new checkpoints will say: settings, tokenizer and training data.
        tokenizer_hashes: hashes that the run's tokenizer has and had in earlier versions.

    Raises:
        ValueError: what differs, or the folder where the run's checkpoints lie instead.
    """
    with processes.raising_everywhere():
        if processes.is_first():  # the others may have another disk at `out`
            _refuse_to_begin_anew(config, checkpoints)
    for step in checkpoints.steps():
        try:
            stored = checkpoints.about(step)
        except ValueError:
            continue  # damaged: `first_state` says so
        where, stored = f"{checkpoints.folder}/{step}", about | stored
        if stored["tokenizer"] not in tokenizer_hashes:
            raise ValueError(
                f"{where} was trained with tokenizer {stored['tokenizer']}, this run has {about['tokenizer']}: "
                "put the right tokenizer back, or choose another --out."
            )
        data = {"training data": stored["data"]}, {"training data": about["data"]}
        _refuse_changes(config, stored["run"] | data[0], where, data[1])
        return


def _refuse_to_begin_anew(config: TrainConfig, checkpoints: Checkpoints) -> None:
    """Refuse an empty folder of checkpoints where the run folder says that they lie elsewhere."""
    if checkpoints.steps() or not (config.out / "config.json").is_file():
        return
    before = epath.Path(checkpoints_folder(config.out)) / "steps"
    if before != checkpoints.folder and before.is_dir() and any(p.name.isdigit() for p in before.iterdir()):
        raise ValueError(
            f"the checkpoints of {config.out} lie in {before}, and {checkpoints.folder} holds none: "
            f"move them there, or resume with --checkpoints.folder {before.parent}."
        )


def _refuse_changes(
    config: TrainConfig, stored: dict[str, Any], where: object, beside: dict[str, Any] | None = None
) -> None:
    changes = "; ".join(differences(stored, config.identity() | (beside or {})))
    if changes and not config.changed:
        raise ValueError(
            f"{where} holds a run with other settings ({changes}). "
            "Choose another --out, or resume with the new settings: --changed."
        )
    if changes and processes.is_first():
        print(f"warning: resuming with other settings: {changes}", file=sys.stderr)


class LazyModel(NamedTuple):
    """A model whose weights are made when a run starts from them, so that memory holds them once."""

    config: ModelConfig
    """Shape of the model."""
    make: Callable[[], Decoder]
    """Returns the weights, which the caller may destroy."""

    @classmethod
    def of(cls, model: "Decoder | LazyModel") -> "LazyModel":
        """Return the model, or one that copies the weights at hand: a step destroys its input."""
        return cls(model.config, lambda: jax.tree.map(jnp.copy, model)) if isinstance(model, Decoder) else model


def resumed_folder(config: TrainConfig) -> Path | None:
    """Return the folder on this machine that describes the run; None if it has no checkpoint to resume from."""
    steps = epath.Path(config.checkpoints.folder or config.out) / "steps"
    if not steps.is_dir() or not any(path.name.isdigit() for path in steps.iterdir()):
        return None
    here = (Path(folder) for folder in config.folders() if not is_remote(folder))
    return next((folder for folder in here if (folder / "config.json").is_file()), None)


def first_state(
    config: TrainConfig,
    model: LazyModel,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None,
    checkpoints: Checkpoints,
) -> tuple[int, TrainState]:
    """Steps done, and the state: from the newest readable checkpoint, or else from `model` and a fresh optimizer.

    Raises:
        ValueError: there are checkpoints, and none can be read; or the run has made more steps than it shall make.
    """
    init: Any = optimizer.init
    empty = empty_model(model.config)
    like = TrainState(empty, jax.eval_shape(init, empty))
    if mesh is not None:
        like = shapes(like, shardings(like, LOGICAL_AXES, mesh))
        init = jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, like.opt_state))
    found = restore(checkpoints, like)
    if found is None:
        weights = model.make()
        return 0, TrainState(weights, init(weights))
    if found[0] > config.n_steps:
        raise ValueError(f"{config.out} has made {found[0]} steps, more than --n-steps {config.n_steps}.")
    return found


def restore(checkpoints: Checkpoints, like: TrainState) -> tuple[int, TrainState] | None:
    """Steps done and state of the newest readable checkpoint; damaged ones are moved to the folder `damaged`.

    Args:
        checkpoints: of the run.
        like: the state's shapes and layout, rather than arrays, which would be in memory twice.

    Raises:
        ValueError: there are checkpoints, and none can be read.
    """

    def read(step: int) -> TrainState:
        return TrainState(
            checkpoints.restore("model", like.model, step), checkpoints.restore("optimizer", like.opt_state, step)
        )

    found = checkpoints.newest(read)
    if found is not None and (damaged := checkpoints.discard_after(found[0], "damaged")):
        print(f"warning: moved checkpoints {damaged} to {checkpoints.folder.parent / 'damaged'}", file=sys.stderr)
    return found
