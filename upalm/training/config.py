"""TrainConfig, the settings of a run, and its JSON."""

import dataclasses
import types
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from upalm import ul2r
from upalm.data.config import DataConfig
from upalm.distributed.processes import ProcessConfig
from upalm.distributed.sharding import MeshConfig
from upalm.model.config import ModelConfig
from upalm.training.optim import Adafactor, Optimizer
from upalm.training.spikes import SpikeConfig

FORMER_CLASSES = {
    "Keep": "CheckpointConfig",
    "Watched": "LoggingConfig",
    "Hosts": "ProcessConfig",
    "Spikes": "SpikeConfig",
}
"""Current names of classes that config.json of earlier versions names."""

FORMER_FIELDS = {"keep": "checkpoints", "watched": "logging", "hosts": "processes"}
"""Current names of fields of `TrainConfig` that config.json of earlier versions names."""


def to_json(settings: Any) -> Any:
    """Plain JSON values; a dataclass also says its class."""
    if dataclasses.is_dataclass(settings):
        fields = {f.name: to_json(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
        return {"class": type(settings).__name__} | fields
    if isinstance(settings, tuple | list):
        return [to_json(x) for x in settings]
    return str(settings) if isinstance(settings, Path) else settings


def from_json(kind: Any, found: Any) -> Any:
    """The inverse of `to_json`, given the annotated type.

    Raises:
        ValueError: a kind or a setting that this version does not know.
    """
    if dataclasses.is_dataclass(kind) or get_origin(kind) in (Union, types.UnionType):
        options: list[Any] = [k for k in get_args(kind) or (kind,) if dataclasses.is_dataclass(k)]
        if isinstance(found, dict) and options:
            found = _current_names(found)
            chosen = next((k for k in options if k.__name__ == found.get("class")), None)
            if chosen is None:
                names = [k.__name__ for k in options]
                raise ValueError(f"the settings have {found.get('class')!r} where one of {names} is expected.")
            hints = get_type_hints(chosen)
            if unknown := sorted(found.keys() - hints.keys() - {"class"}):
                raise ValueError(f"{chosen.__name__} has no {unknown}: the settings are of another version.")
            return chosen(**{k: from_json(hints[k], v) for k, v in found.items() if k != "class"})
        return found
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        each = inner[:1] * len(found) if inner[-1] is Ellipsis else inner
        return tuple(from_json(k, x) for k, x in zip(each, found, strict=True))
    return Path(found) if kind is Path else found


def differences(there: dict[str, Any], here: dict[str, Any], within: str = "") -> list[str]:
    """What differs, each by its dotted name and both values. A field newer than the stored settings had its default."""
    found, defaults, there = [], _defaults(here.get("class", "TrainConfig")), _current_names(there)
    for name in sorted(there.keys() | here.keys()):
        a, b = there.get(name, defaults.get(name)), here.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{within}{name}.")
        elif a != b:
            found.append(f"{within}{name}: {a} there, {b} here")
    return found


def _current_names(stored: dict[str, Any]) -> dict[str, Any]:
    """Stored settings with the class and field names of this version."""
    name = stored.get("class")
    former_fields = FORMER_FIELDS if name == "TrainConfig" else {}
    renamed = {former_fields.get(key, key): value for key, value in stored.items()}
    return renamed | {"class": FORMER_CLASSES.get(name, name)} if name else renamed


def _defaults(class_name: str) -> dict[str, Any]:
    """Default values of a class of settings, as JSON."""
    classes = {
        kind.__name__: kind for kind in (TrainConfig, ModelConfig, DataConfig, SpikeConfig, *get_args(Optimizer))
    }
    fields = dataclasses.fields(classes[class_name]) if class_name in classes else ()
    return {f.name: to_json(f.default) for f in fields if f.default is not dataclasses.MISSING}


@dataclass(frozen=True)
class Scratch:
    """Start from random weights and a tokenizer trained on the data (pretraining)."""

    model: ModelConfig = field(default_factory=ModelConfig)


@dataclass(frozen=True)
class Continue:
    """Start from the weights and tokenizer of a checkpoint, with fresh optimizer state (UL2R)."""

    checkpoint: Annotated[Path, tyro.conf.arg(aliases=("--checkpoint", "-c"))]
    """Folder of a run, of one of its steps, or of weights."""
    remat: Literal["kept", "none", "matmuls", "full"] = "kept"
    """What the backward pass computes again (`ModelConfig.remat`), if not what the checkpoint says."""

    def reshaped(self, model: ModelConfig) -> ModelConfig:
        """The checkpoint's shape, with what is set here."""
        return model if self.remat == "kept" else replace(model, remat=self.remat)


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written, and which stay."""

    minutes: float = 0.0
    """Also after this many minutes without one; 0 goes by `save_every` alone."""
    last: int = 2
    """Newest ones to keep."""
    every: int = 0
    """Keep those whose step is a multiple of this, too; 0 keeps none of them."""
    folder: str = ""
    """Where they lie, on a disk that all hosts see or in a bucket (gs://...); empty is `out`."""

    def __post_init__(self):
        if self.minutes < 0 or self.last < 1 or self.every < 0:
            raise ValueError(f"{self}: expected minutes at least 0, last at least 1, every at least 0.")


@dataclass(frozen=True)
class LoggingConfig:
    """What of a run goes where, beside the progress line and metrics.jsonl."""

    writers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Other places for the metrics."""
    profile: tuple[int, int] = (0, 0)
    """First and last step of a profile, written to `out`/profile; (0, 0) writes none."""

    def __post_init__(self):
        first, last = self.profile
        if (first, last) != (0, 0) and not 1 <= first <= last:
            raise ValueError(f"profile {self.profile}: expected first and last step, counted from 1, or 0 0 for none.")


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Everything that decides its numbers is here."""

    out: Path
    """Folder of the run: checkpoints, tokenizer, metrics. Run again with the same settings to resume."""
    start: Scratch | Continue = field(default_factory=Scratch)
    """Where the weights come from."""
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: Optimizer = field(default_factory=Adafactor)
    n_steps: int = 1000
    """Optimizer steps."""
    accumulation: int = 1
    """Microbatches that a batch is split into, to save memory; the update is the same."""
    seed: int = 0
    """Decides weights, data order and noise."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every: int = 500
    """Steps between checkpoints; one is also written at the end, and on Ctrl-C or SIGTERM."""
    eval_every: int = 500
    """Steps between evaluations of the validation loss."""
    eval_batches: int = 8
    """Validation batches."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    processes: ProcessConfig = field(default_factory=ProcessConfig)
    spikes: SpikeConfig = field(default_factory=SpikeConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    changed: bool = False
    """Go on with a run although its settings differ from those it was begun with."""

    def __post_init__(self):
        for name in ("n_steps", "accumulation", "log_every", "save_every", "eval_every", "eval_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1.")
        for n in self.data.batch_sizes():
            if n % self.accumulation:
                raise ValueError(f"batch_size {n} is no multiple of accumulation {self.accumulation}.")

    def identity(self) -> dict[str, Any]:
        """As JSON, without what does not change the numbers but by rounding."""
        free = {"out", "log_every", "save_every", "checkpoints", "mesh", "processes", "logging", "changed"}
        fields = {k: v for k, v in to_json(self).items() if k not in {*free, "class"}}
        fields["data"] = {k: v for k, v in fields["data"].items() if k != "n_workers"}
        return fields | {"denoisers": [repr(d) for d in ul2r.mixture(self.data.mixture)]}
