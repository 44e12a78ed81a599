"""Described TPU slices, and nodes of GPUs that they stand in for: devices without hardware."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from upalm.distributed.chips import CHIPS, Chip, chip_of
from upalm.spelling import suggest

_CUBES = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 12x16x16 16x16x16"
_SQUARES = "2x2 2x4 4x4 4x8 8x8 8x16 16x16"
_GPUS = ("H100", "H200", "B200")
_STAND_IN = "v5p:2x2x2"
"""Eight chips whose compiled step stands in for that of a node of GPUs, since libtpu compiles for TPUs alone.
Partitioning and products are the same, and the rates are the GPU's."""

TOPOLOGIES = tuple(
    f"{chip}:{shape}"
    for chip, shapes in {"v4": _CUBES, "v5p": _CUBES, "tpu7x": _CUBES, "v5e": _SQUARES, "v6e": _SQUARES}.items()
    for shape in shapes.split()
) + tuple(f"{gpu}:8" for gpu in _GPUS)
"""Slices that can be described: the chip, and the number of chips along each dimension of the torus; nodes of GPUs."""

INSTALL = "pip install libtpu"
"""Command that installs the TPU compiler."""


# --- Chips ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Devices to plan for, and their kind of chip."""

    name: str
    chip: Chip | None
    devices: Sequence[Any]
    stands_in: bool = False
    """Whether the devices stand in for others, which are `chip`."""
    available: int = 0
    """Bytes of each device that JAX may use, as it reports them; 0 if it does not."""

    @property
    def memory(self) -> float:
        """Bytes of each device: those that it reports, or else the chip's by the table; 0 if neither is known."""
        return float(self.available or (self.chip.memory if self.chip else 0))


def target_of(topology: str, n_slices: int = 1) -> Target:
    """Return the devices of a described slice such as `v4:8x8x8`, or with `here` those of this machine.

    A node of GPUs such as `H100:8` has the devices of a TPU slice, which stands in for it.

    Raises:
        ValueError: unknown topology, with the nearest; or `libtpu` is missing.
    """
    if topology == "here":
        device = jax.local_devices()[0]
        available = (device.memory_stats() or {}).get("bytes_limit", 0)
        return Target(device.device_kind, chip_of(device.device_kind), jax.devices(), available=available)
    family, _, shape = topology.partition(":")
    hint = suggest(topology, TOPOLOGIES, "`upalm plan --list` names them.")
    is_slice = family in CHIPS and CHIPS[family].kind.startswith("TPU") and re.fullmatch(r"\d+(x\d+){1,2}", shape)
    is_node = family in _GPUS and shape == "8"
    if not is_slice and not is_node:
        raise ValueError(f"unknown topology {topology!r}: {hint}")
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"planning for {topology} needs libtpu, the TPU compiler (Linux on x86-64): {INSTALL}"
        ) from None
    from jax.experimental import topologies

    name = topology if is_slice else _STAND_IN
    try:
        described = topologies.get_topology_desc(
            platform="tpu",
            topology_name=name,
            chip_config_name="megacore" if name.startswith(("v4", "v5p")) else "default",
            chips_per_host_bounds=(2, 2, 1),
            num_slices=n_slices,
        )
    except jax.errors.JaxRuntimeError as e:
        reason = str(e).split("\n")[0][:200]
        raise ValueError(f"no slice {topology} ({reason}): {hint}") from e
    slices = f"{n_slices} x {topology}" if n_slices > 1 else topology
    return Target(slices, CHIPS[family], described.devices, stands_in=is_node)
