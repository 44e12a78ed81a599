"""Described TPU slices: devices without hardware."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from upalm.distributed.chips import CHIPS, Chip, chip_of
from upalm.spelling import suggest

_CUBES = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 12x16x16 16x16x16"
_SQUARES = "2x2 2x4 4x4 4x8 8x8 8x16 16x16"

TOPOLOGIES = tuple(
    f"{chip}:{shape}"
    for chip, shapes in {"v4": _CUBES, "v5p": _CUBES, "v5e": _SQUARES, "v6e": _SQUARES}.items()
    for shape in shapes.split()
)
"""Slices that can be described: the chip, and the number of chips along each dimension of the torus."""

INSTALL = "pip install libtpu"
"""Command that installs the TPU compiler."""


# --- Chips ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Devices to plan for, and their kind of chip."""

    name: str
    chip: Chip | None
    devices: Sequence[Any]


def target_of(topology: str, n_slices: int = 1) -> Target:
    """Return the devices of a described slice such as `v4:8x8x8`, or with `here` those of this machine.

    Raises:
        ValueError: unknown topology, with the nearest; or `libtpu` is missing.
    """
    if topology == "here":
        device = jax.devices()[0]
        return Target(device.device_kind, chip_of(device.device_kind), jax.devices())
    family, _, shape = topology.partition(":")
    hint = suggest(topology, TOPOLOGIES, "`upalm plan --list` names them.")
    if family not in CHIPS or not CHIPS[family].kind.startswith("TPU") or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise ValueError(f"unknown topology {topology!r}: {hint}")
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"planning for {topology} needs libtpu, the TPU compiler (Linux on x86-64): {INSTALL}"
        ) from None
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(
            platform="tpu",
            topology_name=topology,
            chip_config_name="megacore" if family in ("v4", "v5p") else "default",
            chips_per_host_bounds=(2, 2, 1),
            num_slices=n_slices,
        )
    except jax.errors.JaxRuntimeError as e:
        reason = str(e).split("\n")[0][:200]
        raise ValueError(f"no slice {topology} ({reason}): {hint}") from e
    slices = f"{n_slices} x {topology}" if n_slices > 1 else topology
    return Target(slices, CHIPS[family], described.devices)
