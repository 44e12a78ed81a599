"""TrainConfig: the settings of a run, and their JSON."""

import dataclasses
import math
import types
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from upalm import ul2r
from upalm.checks import check_choices, is_whole
from upalm.data.config import DataConfig
from upalm.distributed.processes import ProcessConfig
from upalm.distributed.sharding import MeshConfig
from upalm.files import bucket_of
from upalm.model.config import ModelConfig
from upalm.training.optim import Adafactor, AdamW, Optimizer
from upalm.training.spikes import SpikeConfig

FORMER_CLASSES = {
    "Keep": "CheckpointConfig",
    "Watched": "LoggingConfig",
    "Hosts": "ProcessConfig",
    "Spikes": "SpikeConfig",
}
"""Classes by the name that config.json of earlier versions has."""

FORMER_FIELDS = {"keep": "checkpoints", "watched": "logging", "hosts": "processes"}
"""Fields of `TrainConfig` by the name that config.json of earlier versions has."""


def to_json(settings: Any) -> Any:
    """Convert settings to plain JSON values; a dataclass also records its class."""
    if dataclasses.is_dataclass(settings):
        fields = {f.name: to_json(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
        return {"class": type(settings).__name__} | fields
    if isinstance(settings, tuple | list):
        return [to_json(x) for x in settings]
    return str(settings) if isinstance(settings, Path) else settings


def from_json(kind: Any, stored: Any) -> Any:
    """Convert JSON values back to settings of the annotated type.

    Raises:
        ValueError: a class or a field that this version does not know.
    """
    options = _dataclasses(kind)
    if options and isinstance(stored, dict):
        stored = _current_names(stored)
        name = stored.get("class")
        chosen = next((option for option in options if option.__name__ == name), None)
        if chosen is None:
            raise ValueError(
                f"the settings hold {name!r}, which is none of {[option.__name__ for option in options]}: "
                "run the recipe that defines it."
            )
        hints = get_type_hints(chosen)
        if unknown := sorted(stored.keys() - hints.keys() - {"class"}):
            raise ValueError(f"{name} has no {unknown}: the settings are of another version.")
        return chosen(**{key: from_json(hints[key], value) for key, value in stored.items() if key != "class"})
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        kinds = inner[:1] * len(stored) if inner[-1] is Ellipsis else inner
        return tuple(from_json(k, x) for k, x in zip(kinds, stored, strict=True))
    return Path(stored) if kind is Path else stored


def _dataclasses(kind: Any) -> list[Any]:
    """Dataclasses that a value of the annotated type may be; of an optimizer, those of this package."""
    if kind is Optimizer:
        return [Adafactor, AdamW]
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return [member for member in members if dataclasses.is_dataclass(member)]


def differences(stored: dict[str, Any], current: dict[str, Any], within: str = "") -> list[str]:
    """List the settings that differ, each by its dotted name with both values.

    A field that the stored settings lack is newer than they are: it had its default value.
    """
    changes, defaults, stored = [], _defaults(current.get("class", "TrainConfig")), _current_names(stored)
    for name in sorted(stored.keys() | current.keys()):
        before, now = stored.get(name, defaults.get(name)), current.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            changes += differences(before, now, f"{within}{name}.")
        elif before != now:
            changes.append(f"{within}{name}: {before} there, {now} here")
    return changes


def _current_names(stored: dict[str, Any]) -> dict[str, Any]:
    """Stored settings with the class and field names of this version."""
    name = stored.get("class")
    former_fields = FORMER_FIELDS if name == "TrainConfig" else {}
    renamed = {former_fields.get(key, key): value for key, value in stored.items()}
    return renamed | {"class": FORMER_CLASSES.get(name, name)} if name else renamed


def _defaults(class_name: str) -> dict[str, Any]:
    """Default values of a class of settings, as JSON."""
    kinds = (TrainConfig, ModelConfig, DataConfig, SpikeConfig, *_dataclasses(Optimizer))
    fields = next((dataclasses.fields(kind) for kind in kinds if kind.__name__ == class_name), ())
    return {f.name: to_json(f.default) for f in fields if f.default is not dataclasses.MISSING}


@dataclass(frozen=True)
class Scratch:
    """Start from random weights and a tokenizer trained on the data (pretraining)."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Shape of the model."""


@dataclass(frozen=True)
class Continue:
    """Start from the weights and tokenizer of a checkpoint, with fresh optimizer state (UL2R)."""

    checkpoint: Annotated[Path, tyro.conf.arg(aliases=("--checkpoint", "-c"))]
    """Folder of the checkpoint: a run, one of its steps (RUN/steps/500), an export or an import."""
    remat: Literal["kept", "none", "matmuls", "full"] = "kept"
    """Activations recomputed by the backward pass (`ModelConfig.remat`); `kept` leaves it as the checkpoint has it, or
    as a run that is resumed had it."""

    def __post_init__(self):
        check_choices(self)
        if isinstance(self.checkpoint, str):
            object.__setattr__(self, "checkpoint", Path(self.checkpoint))
        if bucket := bucket_of(self.checkpoint):
            raise ValueError(
                f"--start.checkpoint {bucket} is in a bucket, expected a folder on a disk: a run with its checkpoints "
                "in a bucket opens by its own folder, and what lies in a bucket alone must be copied."
            )

    def reshaped(self, model: ModelConfig) -> ModelConfig:
        """Return the checkpoint's model config with `remat` applied."""
        return model if self.remat == "kept" else replace(model, remat=self.remat)


@dataclass(frozen=True)
class CheckpointConfig:
    """Folder, frequency and number of the checkpoints."""

    minutes: float = 0.0
    """Minutes after which a checkpoint is written in any case; 0 goes by `save_every` alone."""
    last: int = 2
    """Number of newest checkpoints to keep."""
    every: int = 0
    """Steps between checkpoints that are kept for good: those at a multiple of this; 0 keeps none."""
    folder: str = ""
    """Folder on a disk that all hosts see, or in a bucket (gs://...); empty is `out`."""

    def __post_init__(self):
        if not 0 <= self.minutes < math.inf or self.last < 1 or self.every < 0:
            raise ValueError(f"{self}: expected minutes at least 0, last at least 1, every at least 0.")


@dataclass(frozen=True)
class LoggingConfig:
    """Metric writers and profiling, in addition to metrics.jsonl."""

    writers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Other places that metrics are written to."""
    profile: tuple[int, int] = (0, 0)
    """First and last step of a profile, written to `out`/profile; (0, 0) writes none."""

    def __post_init__(self):
        check_choices(self)
        first, last = self.profile
        if (first, last) != (0, 0) and not 1 <= first <= last:
            raise ValueError(f"profile {self.profile}: expected first and last step, counted from 1, or 0 0 for none.")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; together they decide its numbers."""

    out: Path
    """Folder of the run: checkpoints, tokenizer, metrics. The same settings resume the run."""
    start: Scratch | Continue = field(default_factory=Scratch)
    """Weights and tokenizer to start from."""
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: Optimizer = field(default_factory=Adafactor)
    """Any frozen dataclass with a `schedule` and `build(n_steps)`; see `Optimizer`."""
    n_steps: int = 1000
    """Optimizer steps."""
    accumulation: int = 1
    """Microbatches per batch: more of them save memory and give the same update."""
    seed: int = 0
    """Seed of weights, data order and noise."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every: int = 500
    """Steps between checkpoints; one is also written at the end, and on Ctrl-C or SIGTERM."""
    eval_every: int = 500
    """Steps between evaluations of the validation loss."""
    eval_batches: int = 8
    """Number of validation batches."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    processes: ProcessConfig = field(default_factory=ProcessConfig)
    spikes: SpikeConfig = field(default_factory=SpikeConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    changed: bool = False
    """Resume a run although its settings differ from those that it began with."""

    def __post_init__(self):
        for name in ("n_steps", "accumulation", "log_every", "save_every", "eval_every", "eval_batches"):
            if not is_whole(value := getattr(self, name)) or value < 1:
                raise ValueError(f"{name} is {value!r}, expected a whole number of at least 1.")
        if isinstance(self.out, str):
            object.__setattr__(self, "out", Path(self.out))
        if bucket := bucket_of(self.out):
            raise ValueError(
                f"--out {bucket} is in a bucket, expected a folder on a disk, for the run's log and settings: "
                f"give one, and put the checkpoints into the bucket with --checkpoints.folder {bucket}."
            )
        if not is_whole(self.seed) or not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed is {self.seed}, expected 0 to 2^63 - 1.")
        if not isinstance(self.optimizer, Optimizer) or not dataclasses.is_dataclass(self.optimizer):
            raise ValueError(
                f"optimizer is {self.optimizer!r}, expected a frozen dataclass with a `schedule` and `build(n_steps)`."
            )
        for n in self.data.batch_sizes():
            if n % self.accumulation:
                raise ValueError(f"batch_size {n} is no multiple of accumulation {self.accumulation}.")

    def folders(self) -> list[Path | str]:
        """Return the folders that the run writes to: its own, and that of its checkpoints if it is another."""
        elsewhere = self.checkpoints.folder
        return [self.out, elsewhere] if elsewhere and Path(elsewhere).absolute() != self.out.absolute() else [self.out]

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the numbers, as JSON; those that change only rounding are left out."""
        return self._all_but("out", "log_every", "save_every", "checkpoints", "mesh", "processes", "logging", "changed")

    def shared(self) -> dict[str, Any]:
        """Return the settings that all processes of a run must have alike, as JSON; else one waits for another."""
        return self._all_but("out", "log_every", "processes", "logging")

    def _all_but(self, *names: str) -> dict[str, Any]:
        fields = {k: v for k, v in to_json(self).items() if k not in {*names, "class"}}
        fields["data"] = {k: v for k, v in fields["data"].items() if k != "n_workers"}
        return fields | {"denoisers": [repr(d) for d in ul2r.mixture(self.data.mixture)]}
