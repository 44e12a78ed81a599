"""Plan a step: its memory, FLOPs, collectives and least time, read from the compiled program.

The chips need not be at hand: the TPU compiler is a Python package, `libtpu`, that compiles for a described slice on a
machine without any TPU.
"""

import re
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from upalm.distributed.chips import GIB, Chip
from upalm.model.config import ModelConfig
from upalm.planning.hlo import Program, Work
from upalm.planning.lowering import Step
from upalm.planning.topology import Target

ADVICE = (
    "more chips; a larger --mesh.model, which splits activations; a larger --accumulation, for fewer rows at a time; "
    "--start.model.remat full (--start.remat, from a checkpoint); XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 on a GPU, in "
    "place of JAX's 0.75; or `--find-mesh`, which tries the meshes that divide"
)
"""Advice for a step that does not fit."""


# --- Plans ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CollectiveCost:
    """Collectives of one kind along the same mesh axes."""

    kind: str
    axes: str
    count: int
    """Times per step."""
    gib: float
    """GiB that a chip sends per step."""


@dataclass(frozen=True)
class Plan:
    """Cost of one compiled step. Times are lower bounds that assume perfect overlap."""

    topology: str
    devices: int
    mesh: dict[str, int]
    params: int
    memory_gib: dict[str, float]
    """Memory of a chip by kind, and `total`; the total alone if the program was too large to compile."""
    capacity_gib: float | None
    flops_per_step: float
    """By the papers' formula: 6N + 12LHQT per token in training, 2N + 4LHQT in decoding."""
    compiled_flops_per_step: float | None
    """Matrix products of the compiled program, on all chips."""
    remat_share: float | None
    """Share of the compiled products that the backward pass repeats."""
    collective_bytes: int
    """Bytes that a chip sends per step."""
    collectives: list[CollectiveCost]
    seconds: dict[str, float]
    """Lower bound by resource: compute, memory, interconnect, network."""
    tokens_per_step: int
    run_tokens: int
    """Tokens of the whole recipe."""
    peak_flops: float | None
    """FLOP/s of a chip."""
    price: float | None = None
    """US dollars per device-hour by the list that `chips` names."""
    stands_in: bool = False
    """Whether the program is that of TPUs, which stand in for GPUs."""
    loops_counted_once: int = 0
    """Loops of unknown length, such as the loop of decoding."""

    @property
    def fits(self) -> bool | None:
        """Whether the step fits the chips' memory; None if their memory is unknown."""
        if self.capacity_gib is None:
            return None
        # the compiler of the chips themselves refuses programs before that, since it reserves some memory
        is_refused = self.memory_gib.keys() == {"total"} and not self.stands_in
        return not is_refused and self.memory_gib["total"] <= self.capacity_gib

    @property
    def step_seconds(self) -> float | None:
        """Least time of a step, if everything overlaps."""
        return max(self.seconds.values(), default=None)

    @property
    def bound_by(self) -> str | None:
        """Resource that takes longest."""
        return max(self.seconds, key=lambda name: self.seconds[name], default=None)

    @property
    def serial_seconds(self) -> float | None:
        """Least time of a step, if nothing overlaps."""
        return sum(self.seconds.values()) or None

    @property
    def mfu(self) -> float | None:
        """Upper bound of the model FLOPs utilisation."""
        if self.step_seconds is None or self.peak_flops is None:
            return None
        return self.flops_per_step / (self.step_seconds * self.devices * self.peak_flops)

    @property
    def run_hours(self) -> float | None:
        """Least hours of the whole recipe."""
        return None if self.step_seconds is None else self.run_tokens / self.tokens_per_step * self.step_seconds / 3600

    @property
    def billion_hours(self) -> list[float] | None:
        """Hours per 1B tokens, if everything overlaps and if nothing does."""
        if self.step_seconds is None or self.serial_seconds is None:
            return None
        return [1e9 / self.tokens_per_step * seconds / 3600 for seconds in (self.step_seconds, self.serial_seconds)]

    def to_json(self) -> dict[str, Any]:
        """Return the fields and the properties as plain values."""
        properties = ("fits", "bound_by", "step_seconds", "serial_seconds", "mfu", "run_hours", "billion_hours")
        step, hours = self.step_seconds, self.run_hours
        return {
            **asdict(self),
            **{name: getattr(self, name) for name in properties},
            "tokens_per_second": None if step is None else self.tokens_per_step / step,
            "chip_hours": None if hours is None else hours * self.devices,
        }


def plan(step: Step, model: ModelConfig, target: Target, mesh: Mesh | None) -> Plan:
    """Compile a step and return its cost.

    A step that needs too much memory has a plan, too.

    Raises:
        ValueError: the compiler refused the step, with its reason.
    """
    common = {
        "topology": target.name,
        "devices": len(target.devices),
        "mesh": dict(mesh.shape) if mesh is not None else {},
        "params": model.n_params,
        "capacity_gib": target.memory / GIB if target.memory else None,
        "flops_per_step": float(step.flops_per_token * step.tokens),
        "tokens_per_step": step.tokens,
        "run_tokens": step.run_tokens,
        "peak_flops": target.chip.flops if target.chip else None,
        "price": target.chip.price if target.chip else None,
        "stands_in": target.stands_in,
    }
    held = {kind: sum(map(_bytes_per_chip, jax.tree.leaves(tree))) for kind, tree in step.held.items()}
    try:
        stats, program = _compile(step, mesh)
    except jax.errors.JaxRuntimeError as e:
        if (total := _refused_gib(str(e))) is None:
            raise ValueError(f"the compiler of {target.name} refused the step: {str(e)[:500]}") from e
        nothing = {"compiled_flops_per_step": None, "remat_share": None, "collective_bytes": 0, "collectives": []}
        return Plan(memory_gib={"total": total}, seconds={}, **nothing, **common)
    if "optimizer" in held:
        held |= _loop_bytes(step.held["parameters"], program, model)
    work = program.work(dict(mesh.shape) if mesh is not None else {"devices": 1})
    is_tpu = target.chip is not None and target.chip.kind.startswith("TPU")
    return Plan(
        memory_gib=_memory(held, stats),
        compiled_flops_per_step=work.flops * len(target.devices) or None,
        remat_share=work.remat_flops / work.flops if work.flops else None,
        collective_bytes=work.collective_bytes,
        collectives=_collective_costs(work),
        loops_counted_once=work.loops_counted_once,
        seconds=_seconds(work, target.chip, mesh) if target.chip and (is_tpu or target.stands_in) else {},
        **common,
    )


def _refused_gib(error: str) -> float | None:
    """Return the GiB of a program that does not fit, with its arguments; None for other errors."""
    patterns = (r"HLO temporaries \(([\d.]+)G\)", r"memory space hbm. Used ([\d.]+)G")
    match = next(filter(None, (re.search(pattern, error) for pattern in patterns)), None)
    return float(match.group(1)) if match else None


def _compile(step: Step, mesh: Mesh | None):
    """Return memory statistics and program. The text is the compiler's dump: on v6e `as_text` fails (libtpu 0.0.52)."""
    with jax.set_mesh(mesh) if mesh is not None else ExitStack():
        lowered = step.lower()
        with tempfile.TemporaryDirectory() as folder:
            dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
            compiled = lowered.compile(compiler_options=dump)
            texts = sorted(Path(folder).glob("*after_optimizations.txt"))
            text = texts[-1].read_text(encoding="utf-8") if texts else compiled.as_text() or ""
    return compiled.memory_analysis(), Program.parse(text)


def _loop_bytes(model: Any, program: Program, config: ModelConfig) -> dict[str, int]:
    """Return the bytes that the loops over layers fill: activations in the forward pass, gradients in the backward.

    What they fill has an entry per layer. They may run less often, since XLA takes the first or last run out of a loop
    to overlap its collectives.
    """
    n_layers = config.n_layers
    loops = [loop for loop, n in program.loops() if n is not None and 0 <= n_layers - n <= _MOST_TAKEN_OUT]
    filled = [[b for b in program.stacked(loop) if b.shape[:1] == (n_layers,)] for loop in loops]
    stacks = [sum(b.n_bytes for b in buffers) for buffers in filled if buffers]
    tables = sum(_bytes_per_chip(x) for x in (model.embed, model.head) if x is not None)
    gradients = stacks[-1] + tables if len(stacks) > 1 else 0
    return {"gradients": gradients, "activations": stacks[0] if stacks else 0}


_MOST_TAKEN_OUT = 2
"""Runs of a loop over layers that the compiler may have taken out of it."""


def total_bytes(stats: Any) -> int:
    """Return the bytes of a chip that a compiled program needs, by its `memory_analysis()`."""
    kinds = ("argument", "output", "temp", "generated_code")
    return sum(getattr(stats, f"{kind}_size_in_bytes") for kind in kinds) - stats.alias_size_in_bytes


def _memory(held: dict[str, int], stats: Any) -> dict[str, float]:
    total = total_bytes(stats)
    by_kind = held | {"rest": total - sum(held.values()), "total": total}
    return {kind: n / GIB for kind, n in by_kind.items()}


def _bytes_per_chip(x: Any) -> int:
    shape = x.sharding.shard_shape(x.shape) if isinstance(x.sharding, NamedSharding) else x.shape
    return int(np.prod(shape)) * x.dtype.itemsize


def _collective_costs(work: Work) -> list[CollectiveCost]:
    count, sent = Counter(), Counter()
    for c, n in work.collectives.items():
        count[c.kind, "+".join(c.axes)] += n
        sent[c.kind, "+".join(c.axes)] += n * c.n_bytes
    return [CollectiveCost(kind, axes, count[kind, axes], sent[kind, axes] / GIB) for kind, axes in sorted(count)]


def _seconds(work: Work, chip: Chip, mesh: Mesh | None) -> dict[str, float]:
    """Return the bounds. A mesh axis sends both ways over the links of all torus dimensions that it spans."""
    bounds = {"compute": work.flops / chip.flops, "memory": work.memory_bytes / chip.bandwidth}
    if mesh is None:
        return bounds
    between, sent = 0.0, dict.fromkeys((c.axes for c in work.collectives), 0.0)
    for c, n in work.collectives.items():
        n_slices = len({getattr(device, "slice_index", 0) for device in _devices_along(mesh, c.axes)})
        over_network = (n_slices - 1) / max(c.n_devices - 1, 1)  # the least possible: the rest stays within slices
        between += n * c.n_bytes * over_network
        sent[c.axes] += n * c.n_bytes * (1 - over_network)
    alone = [n / (min(_n_links(mesh, axes), chip.links) * chip.link) for axes, n in sent.items() if axes]
    together = sum(sent.values()) / (chip.links * chip.link)
    bounds["interconnect"] = max([together, *alone])
    return bounds | ({"network": between / chip.network} if between else {})


def _devices_along(mesh: Mesh, axes: tuple[str, ...]) -> np.ndarray:
    return mesh.devices[tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)].ravel()


def _n_links(mesh: Mesh, axes: tuple[str, ...]) -> int:
    coordinates = np.array([device.coords for device in _devices_along(mesh, axes)])
    return 2 * max(sum(len(set(coordinates[:, d].tolist())) > 1 for d in range(coordinates.shape[1])), 1)
