"""`Plan`: what a training step takes on chips that one may not have, from the program that their compiler makes.

The TPU compiler is a Python package, `libtpu`, that compiles for a described slice on a machine without any TPU.
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
    "--start.model.remat full (--start.remat, from a checkpoint); or `--find-mesh`, which tries the meshes that divide"
)
"""What to change if a step does not fit."""


# --- Plans ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CollectiveCost:
    """Collectives of one kind along the same mesh axes."""

    kind: str
    axes: str
    count: int
    """A step."""
    gib: float
    """That a chip sends a step."""


@dataclass(frozen=True)
class Plan:
    """What a step takes. Times are bounds: nothing that the chips do is counted twice or waits for anything."""

    topology: str
    devices: int
    mesh: dict[str, int]
    params: int
    memory_gib: dict[str, float]
    """Of a chip, by kind and in `total`; only the total if the program was too large to compile."""
    capacity_gib: float | None
    flops_per_step: float
    """By the papers' formula: 6N + 12LHQT a token in training, 2N + 4LHQT in decoding."""
    compiled_flops_per_step: float | None
    """Of the matrix products in the compiled program, on all chips."""
    remat_share: float | None
    """Of the compiled products, those that the backward pass repeats."""
    collective_bytes: int
    """That a chip sends a step."""
    collectives: list[CollectiveCost]
    seconds: dict[str, float]
    """Bounds by what takes the time: compute, memory, interconnect, network."""
    tokens_per_step: int
    run_tokens: int
    """Of the whole recipe."""
    peak_flops: float | None
    """Of a chip."""
    loops_counted_once: int = 0
    """Loops whose length the program does not say, such as that of decoding."""

    @property
    def fits(self) -> bool | None:
        """Whether the chips' memory holds it; None where that is unknown."""
        return None if self.capacity_gib is None else self.memory_gib["total"] <= self.capacity_gib

    @property
    def step_seconds(self) -> float | None:
        """Of what takes longest, if all else happens meanwhile."""
        return max(self.seconds.values(), default=None)

    @property
    def bound_by(self) -> str | None:
        """What takes longest."""
        return max(self.seconds, key=lambda name: self.seconds[name], default=None)

    @property
    def serial_seconds(self) -> float | None:
        """If nothing happens meanwhile."""
        return sum(self.seconds.values()) or None

    @property
    def mfu(self) -> float | None:
        """Bound of the model's FLOPs utilisation."""
        if self.step_seconds is None or self.peak_flops is None:
            return None
        return self.flops_per_step / (self.step_seconds * self.devices * self.peak_flops)

    @property
    def run_hours(self) -> float | None:
        """Of the whole recipe."""
        return None if self.step_seconds is None else self.run_tokens / self.tokens_per_step * self.step_seconds / 3600

    def to_json(self) -> dict[str, Any]:
        """Plain values, those that follow from others too."""
        follow = ("fits", "bound_by", "step_seconds", "serial_seconds", "mfu", "run_hours")
        step, hours = self.step_seconds, self.run_hours
        return {
            **asdict(self),
            **{name: getattr(self, name) for name in follow},
            "tokens_per_second": None if step is None else self.tokens_per_step / step,
            "chip_hours": None if hours is None else hours * self.devices,
        }


def plan(step: Step, model: ModelConfig, target: Target, mesh: Mesh | None) -> Plan:
    """Compile a step and read what it takes.

    Raises:
        ValueError: the compiler refused it, with its reason. One that needs too much memory has a plan.
    """
    common = {
        "topology": target.name,
        "devices": len(target.devices),
        "mesh": dict(mesh.shape) if mesh is not None else {},
        "params": model.n_params,
        "capacity_gib": target.chip.memory / GIB if target.chip and target.chip.memory else None,
        "flops_per_step": step.flops_per_token * step.tokens,
        "tokens_per_step": step.tokens,
        "run_tokens": step.run_tokens,
        "peak_flops": target.chip.flops if target.chip else None,
    }
    held = {kind: sum(map(_bytes_here, jax.tree.leaves(tree))) for kind, tree in step.held.items()}
    try:
        stats, program = _compiled(step, mesh)
    except jax.errors.JaxRuntimeError as e:
        if (temporaries := _too_much(str(e))) is None:
            raise ValueError(f"the compiler of {target.name} refused the step: {str(e)[:500]}") from e
        total = temporaries + sum(held.values()) / GIB
        nothing = {"compiled_flops_per_step": None, "remat_share": None, "collective_bytes": 0, "collectives": []}
        return Plan(memory_gib={"total": total}, seconds={}, **nothing, **common)
    if "optimizer" in held:
        held |= _carried(step.held["parameters"], program, model)
    work = program.work(dict(mesh.shape) if mesh is not None else {"devices": 1})
    return Plan(
        memory_gib=_memory(held, stats),
        compiled_flops_per_step=work.flops * len(target.devices) or None,
        remat_share=work.remat_flops / work.flops if work.flops else None,
        collective_bytes=work.collective_bytes,
        collectives=_exchanges(work),
        loops_counted_once=work.loops_counted_once,
        seconds=_seconds(work, target.chip, mesh) if target.chip and target.chip.kind.startswith("TPU") else {},
        **common,
    )


def _too_much(error: str) -> float | None:
    """GiB of temporaries, of a program that does not fit."""
    used = re.search(r"memory space hbm. Used ([\d.]+)G", error)
    needed = re.search(r"HLO temporaries \(([\d.]+)G\)", error)
    found = needed or used
    return float(found.group(1)) if found else None


def _compiled(step: Step, mesh: Mesh | None):
    """Memory statistics and program. The text is the compiler's dump: on v6e `as_text` fails (libtpu 0.0.52)."""
    with jax.set_mesh(mesh) if mesh is not None else ExitStack():
        lowered = step.lower()
        with tempfile.TemporaryDirectory() as folder:
            dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
            compiled = lowered.compile(compiler_options=dump)
            texts = sorted(Path(folder).glob("*after_optimizations.txt"))
            text = texts[-1].read_text(encoding="utf-8") if texts else compiled.as_text() or ""
    return compiled.memory_analysis(), Program.parse(text)


def _carried(model: Any, program: Program, config: ModelConfig) -> dict[str, int]:
    """What the loops over the layers fill: activations on the way forward, gradients on the way back."""
    loops = [loop for loop, n in program.loops() if n == config.n_layers]
    stacks = [sum(b.n_bytes for b in program.stacked(loop)) for loop in loops]
    tables = sum(_bytes_here(x) for x in (model.embed, model.head) if x is not None)
    return {
        "gradients": stacks[-1] + tables if len(stacks) > 1 else 0,
        "activations": stacks[0] if stacks else 0,
    }


def _memory(held: dict[str, int], stats: Any) -> dict[str, float]:
    total = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes
    )
    by_kind = held | {"rest": total - sum(held.values()), "total": total}
    return {kind: n / GIB for kind, n in by_kind.items()}


def _bytes_here(x: Any) -> int:
    shape = x.sharding.shard_shape(x.shape) if isinstance(x.sharding, NamedSharding) else x.shape
    return int(np.prod(shape)) * x.dtype.itemsize


def _exchanges(work: Work) -> list[CollectiveCost]:
    count, sent = Counter(), Counter()
    for c, n in work.collectives.items():
        count[c.kind, "+".join(c.axes)] += n
        sent[c.kind, "+".join(c.axes)] += n * c.n_bytes
    return [CollectiveCost(kind, axes, count[kind, axes], sent[kind, axes] / GIB) for kind, axes in sorted(count)]


def _seconds(work: Work, chip: Chip, mesh: Mesh | None) -> dict[str, float]:
    """Bounds. A mesh axis sends over the links of all dimensions of the torus that it spans, both ways."""
    found = {"compute": work.flops / chip.flops, "memory": work.memory_bytes / chip.bandwidth}
    if mesh is None:
        return found
    between, sent = 0.0, dict.fromkeys((c.axes for c in work.collectives), 0.0)
    for c, n in work.collectives.items():
        n_slices = len({getattr(device, "slice_index", 0) for device in _along(mesh, c.axes)})
        over_network = (n_slices - 1) / max(c.n_devices - 1, 1)  # the least that has to: the rest stays in slices
        between += n * c.n_bytes * over_network
        sent[c.axes] += n * c.n_bytes * (1 - over_network)
    alone = [n / (_n_links(mesh, axes) * chip.link) for axes, n in sent.items() if axes]
    together = sum(sent.values()) / (chip.links * chip.link)
    found["interconnect"] = max([together, *alone])
    return found | ({"network": between / chip.network} if between else {})


def _along(mesh: Mesh, axes: tuple[str, ...]) -> np.ndarray:
    return mesh.devices[tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)].ravel()


def _n_links(mesh: Mesh, axes: tuple[str, ...]) -> int:
    places = np.array([device.coords for device in _along(mesh, axes)])
    return 2 * max(sum(len(set(places[:, d].tolist())) > 1 for d in range(places.shape[1])), 1)
