"""What chips can do, as their makers publish it. Plain numbers, no JAX."""

from dataclasses import dataclass
from types import MappingProxyType

GIB = 2.0**30


@dataclass(frozen=True)
class Chip:
    """One accelerator."""

    kind: str
    """The beginning of JAX's `device_kind`."""
    flops: float
    """Dense bf16 FLOP/s."""
    memory: float = 0.0
    """Bytes of main memory (HBM)."""
    bandwidth: float = 0.0
    """Bytes/s to and from it."""
    links: int = 0
    """To its neighbours; 6 make a three-dimensional torus, 4 a two-dimensional one."""
    link: float = 0.0
    """Bytes/s that a link carries each way."""
    network: float = 0.0
    """Bytes/s of its share of the data-centre network, between slices."""
    source: str = ""


_TPU = (
    "Google Cloud, system architecture pages of the TPU generations (peak compute, HBM, interconnect bandwidth a chip)"
)


_NVIDIA = "NVIDIA's data sheet; without sparsity; NVLink as one link"


_NETWORK = 200e9 / 8 / 4
"""200 Gbit/s a host of four chips: an assumption, since it depends on what is rented."""


CHIPS = MappingProxyType(
    {
        "v4": Chip("TPU v4", 275e12, 32 * GIB, 1228e9, 6, 300e9 / 6, _NETWORK, _TPU + "; peak also PaLM section 4"),
        "v5e": Chip("TPU v5 lite", 197e12, 16 * GIB, 819e9, 4, 200e9 / 4, _NETWORK, _TPU),
        "v5p": Chip("TPU v5", 459e12, 95 * GIB, 2765e9, 6, 600e9 / 6, _NETWORK, _TPU),
        "v6e": Chip("TPU v6 lite", 918e12, 32 * GIB, 1640e9, 4, 448e9 / 4, _NETWORK, _TPU),
        "A100": Chip("NVIDIA A100", 312e12, 80e9, 2039e9, 1, 300e9, 0.0, _NVIDIA),
        "H100": Chip("NVIDIA H100", 989e12, 80e9, 3350e9, 1, 450e9, 0.0, _NVIDIA),
        "H100 PCIe": Chip("NVIDIA H100 PCIe", 756e12, 80e9, 2000e9, 1, 300e9, 0.0, _NVIDIA),
        "H200": Chip("NVIDIA H200", 989e12, 141e9, 4800e9, 1, 450e9, 0.0, _NVIDIA),
    }
)
"""By the names their makers use."""


_OTHER_KINDS = {"TPU v5p": "v5p", "TPU v5e": "v5e", "TPU v6e": "v6e"}


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a JAX device; None if it is unknown. The longest name that fits counts.

    >>> chip_of("TPU v5 lite").flops / 1e12
    197.0
    """
    kinds = {chip.kind: chip for chip in CHIPS.values()} | {k: CHIPS[name] for k, name in _OTHER_KINDS.items()}
    fitting = [kind for kind in kinds if device_kind.startswith(kind)]
    return kinds[max(fitting, key=len)] if fitting else None
