"""PaLM's Adafactor and AdamW as optax transformations, and the learning-rate schedules."""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from upalm.checks import check_choices


@runtime_checkable
class Optimizer(Protocol):
    """An optimizer of a run: a frozen dataclass with a learning-rate schedule and `build`.

    `TrainConfig` takes any frozen dataclass with these two, whose fields are recorded in config.json. Equal settings
    should build the same object (`lru_cache`), because the compiled step is found by it.
    """

    @property
    def schedule(self) -> "Schedule":
        """Learning rate by step, which the metrics report."""
        ...

    def build(self, n_steps: int) -> optax.GradientTransformation:
        """Return the transformation from gradients to updates, for a run of `n_steps`."""
        ...

    @classmethod
    def __subclasshook__(cls, other: type, /) -> bool:
        """Recognise classes by their fields, so that the command line offers an optimizer's own settings."""
        return "schedule" in getattr(other, "__dataclass_fields__", ()) and hasattr(other, "build")


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step, counted from 0."""

    kind: Literal["constant", "cosine", "rsqrt"] = "cosine"
    """`constant`; `cosine` from peak to final over the run (UL2R); or `rsqrt`, the peak for `warm_steps` and then
    falling as 1/sqrt(step) (PaLM)."""
    peak: float = 1e-4
    """Highest learning rate."""
    final: float = 1e-6
    """Last learning rate of cosine."""
    warm_steps: int = 10_000
    """Steps that rsqrt stays at its peak."""
    warmup_steps: int = 0
    """Steps of linear warm-up from 0, before the schedule."""

    def __post_init__(self):
        check_choices(self)
        if not 0 <= self.final <= self.peak and self.kind == "cosine":
            raise ValueError(f"final {self.final} and peak {self.peak}: expected 0 <= final <= peak.")
        if not 0 < self.peak < math.inf or self.warm_steps < 1 or self.warmup_steps < 0:
            raise ValueError(f"{self}: peak above 0, warm_steps at least 1, warmup_steps at least 0.")

    def build(self, n_steps: int) -> optax.Schedule:
        """Return the learning rate as a function of the step."""
        base = self._base(n_steps)
        if self.warmup_steps == 0:
            return base
        return optax.join_schedules([optax.linear_schedule(0, self.peak, self.warmup_steps), base], [self.warmup_steps])

    def _base(self, n_steps: int) -> optax.Schedule:
        if self.kind == "cosine":
            n_decay = max(n_steps - self.warmup_steps, 1)
            return optax.cosine_decay_schedule(self.peak, n_decay, self.final / self.peak)
        if self.kind == "rsqrt":
            return lambda step: self.peak * jnp.sqrt(self.warm_steps / jnp.maximum(step, self.warm_steps))
        return optax.constant_schedule(self.peak)


@dataclass(frozen=True)
class Adafactor:
    """PaLM's optimizer (section 5): Adafactor without factoring, which is Adam with parameter scaling.

    `factored` is Adafactor's own memory saving (Shazeer and Stern, arXiv:1804.04235), for models that would not fit.
    """

    schedule: Schedule = field(default_factory=Schedule)
    beta1: float = 0.9
    """Decay rate of the momentum, without bias correction."""
    decay_exponent: float = 0.8
    """beta2 at step k is 1 - k^-decay_exponent."""
    clip_norm: float = 1.0
    """Global norm that gradients are clipped to."""
    decay: bool = True
    """Whether to decay weights by the squared learning rate."""
    factored: bool = False
    """Keep second moments by row and column, and momentum in bf16: 2 bytes of state per parameter, not 8."""

    def __post_init__(self):
        if not (0 <= self.beta1 < 1 and 0 < self.decay_exponent < math.inf and self.clip_norm > 0):
            raise ValueError(f"{self}: expected beta1 in [0, 1), decay_exponent and clip_norm above 0.")

    @lru_cache  # noqa: B019
    def build(self, n_steps: int) -> optax.GradientTransformation:
        """Return the chain in T5X's order: clip, precondition, learning rate, parameter scale, momentum, decay."""
        schedule = self.schedule.build(n_steps)
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.chain(scale_by_factored_rms(self.decay_exponent), clip_by_layer_rms())
            if self.factored
            else optax.scale_by_factored_rms(factored=False, decay_rate=self.decay_exponent, epsilon=1e-30),
            optax.scale_by_learning_rate(schedule),
            scale_by_layer_rms(),
            optax.ema(self.beta1, debias=False, accumulator_dtype=jnp.bfloat16 if self.factored else None),
            decay_by_squared_learning_rate(schedule) if self.decay else optax.identity(),
        )


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101)."""

    schedule: Schedule = field(default_factory=Schedule)
    beta1: float = 0.9
    """Decay rate of the first moment."""
    beta2: float = 0.95
    """Decay rate of the second moment."""
    weight_decay: float = 0.1
    """Weight decay per unit of learning rate."""
    clip_norm: float = 1.0
    """Global norm that gradients are clipped to."""

    def __post_init__(self):
        betas_fit = 0 <= self.beta1 < 1 and 0 <= self.beta2 < 1
        if not (betas_fit and 0 <= self.weight_decay < math.inf and self.clip_norm > 0):
            raise ValueError(f"{self}: expected betas in [0, 1), weight_decay at least 0, clip_norm above 0.")

    @lru_cache  # noqa: B019
    def build(self, n_steps: int) -> optax.GradientTransformation:
        """Return the chain: clip, then AdamW."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(self.schedule.build(n_steps), self.beta1, self.beta2, weight_decay=self.weight_decay),
        )


class FactoredRmsState(NamedTuple):
    """Running means of squared gradients, over the last axis and over the others; in full for vectors."""

    step: jax.Array
    rows: Any
    columns: Any


def scale_by_factored_rms(decay_exponent: float, epsilon: float = 1e-30) -> optax.GradientTransformation:
    """Divide each gradient by its RMS over time, kept by row and by column (Shazeer and Stern, section 3).

    A matrix is a parameter of any rank per layer, its last axis against the others. optax's transformation of this name
    takes two axes of the whole stack of layers, and keeps all others in full.

    Args:
        decay_exponent: the decay rate at step k is 1 - k^-decay_exponent.
        epsilon: added to the squared gradients.
    """

    def init(params):
        def new_rows(p, axes):
            return jnp.zeros(p.shape[:-1] if len(axes) > 1 else p.shape)

        def new_columns(p, axes):
            return jnp.zeros((*p.shape[: axes[0]], p.shape[-1]) if len(axes) > 1 else ())

        rows, columns = _map_by_layer(new_rows, params), _map_by_layer(new_columns, params)
        return FactoredRmsState(jnp.zeros([], jnp.int32), rows, columns)

    def update(updates, state, params=None):
        decay = 1 - (state.step + 1.0) ** -decay_exponent

        def mean(before, squares):
            return decay * before + (1 - decay) * squares

        def new_rows(g, axes, rows):
            squares = jnp.square(g) + epsilon
            return mean(rows, jnp.mean(squares, -1) if len(axes) > 1 else squares)

        def new_columns(g, axes, columns):
            return mean(columns, jnp.mean(jnp.square(g) + epsilon, axes[:-1])) if len(axes) > 1 else columns

        def scaled(g, axes, rows, columns):
            if len(axes) < 2:
                return g * jax.lax.rsqrt(rows)
            share = rows / jnp.mean(rows, axes[:-1], keepdims=True)
            across = jnp.expand_dims(columns, axes[:-1])
            return g * jax.lax.rsqrt(share)[..., None] * jax.lax.rsqrt(across)

        rows = _map_by_layer(new_rows, updates, state.rows)
        columns = _map_by_layer(new_columns, updates, state.columns)
        count = jnp.asarray(optax.safe_increment(state.step))
        return _map_by_layer(scaled, updates, rows, columns), FactoredRmsState(count, rows, columns)

    return optax.GradientTransformation(init, update)


def _map_by_layer(function, tree, *rest):
    """Map `function(leaf, axes, ...)`, where `axes` are those of a single layer where layers are stacked for scan."""

    def with_axes(path, leaf, *others):
        is_stacked = any(getattr(entry, "name", None) == "blocks" for entry in path)
        return function(leaf, tuple(range(is_stacked, leaf.ndim)), *others)

    return jax.tree_util.tree_map_with_path(with_axes, tree, *rest)


def clip_by_layer_rms(threshold: float = 1.0) -> optax.GradientTransformation:
    """Scale updates down to an RMS of at most `threshold`, each layer by itself (Shazeer and Stern, section 6).

    Moments by row and column underestimate single large gradients, whose updates are then too long.
    """

    def clip(update, axes):
        rms = jnp.sqrt(jnp.mean(jnp.square(update), axes, keepdims=True))
        return update / jnp.maximum(rms / threshold, 1)

    return optax.stateless(lambda updates, _: _map_by_layer(clip, updates))


def scale_by_layer_rms(floor: float = 1e-3) -> optax.GradientTransformation:
    """Multiply each update by the RMS of its parameter, per layer where layers are stacked for scan.

    optax's `scale_by_param_block_rms` takes the RMS over the whole stack, which is another optimizer.

    Args:
        floor: smallest RMS that is used.
    """

    def scale(param, axes, update):
        rms = jnp.sqrt(jnp.mean(jnp.square(param), axes, keepdims=True))
        return update * jnp.maximum(rms, floor)

    return optax.stateless(lambda updates, params: _map_by_layer(scale, params, updates))


def decay_by_squared_learning_rate(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Decay weights as PaLM does: `param *= 1 - lr^2`, after everything else."""

    def update(updates, state, params):
        rate = schedule(state.count) ** 2
        updates = jax.tree.map(lambda u, p: u - rate * p, updates, params)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(lambda params: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)), update)  # pyright: ignore
