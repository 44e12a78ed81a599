"""Peak FLOP/s, memory, links and list prices of TPUs and GPUs, as their makers and sellers publish them. No JAX."""

from dataclasses import dataclass
from types import MappingProxyType

GIB = 2.0**30


@dataclass(frozen=True)
class Chip:
    """Peak rates of one device as JAX sees it: a chip, or of TPU v7 half a chip."""

    kind: str
    """The beginning of JAX's `device_kind`."""
    flops: float
    """Dense bf16 FLOP/s."""
    memory: float = 0.0
    """Bytes of main memory (HBM)."""
    bandwidth: float = 0.0
    """Bytes/s to and from main memory."""
    links: int = 0
    """Links to neighbours: 6 in a three-dimensional torus, 4 in a two-dimensional one."""
    link: float = 0.0
    """Bytes/s per link, each way."""
    network: float = 0.0
    """Bytes/s per chip on the network between slices, or between nodes of GPUs."""
    source: str = ""
    """Publication of the numbers."""
    price: float | None = None
    """US dollars per device-hour on demand, by the list in `price_source`."""
    price_source: str = ""
    """Seller, page and day."""


_TPU = "Google Cloud, system architecture pages of the TPU generations (peak compute, HBM, links per chip)"


_TPU7 = "Google Cloud, TPU7x: half of a chip of two TensorCores, which share its memory and its links"


_NVIDIA = "NVIDIA's data sheet; without sparsity; NVLink as one link"


_INFINIBAND = 400e9 / 8
"""One 400 Gbit/s port per GPU, as NVIDIA's DGX H100, H200 and B200 have."""


_GOOGLE = "Google Cloud, us-east5, in SkyPilot's catalog v8 (skypilot-org/skypilot-catalog 006059e0), on 2026-11-26"


_COREWEAVE = "coreweave.com/pricing, an eighth of a node, on 2026-09-20 (api-evangelist/coreweave 27bcc25e)"


_NETWORK = 200e9 / 8 / 4
"""200 Gbit/s per host of four chips: an assumption, since it depends on the rented machine."""


CHIPS = MappingProxyType(
    {
        "v4": Chip("TPU v4", 275e12, 32 * GIB, 1228e9, 6, 300e9 / 6, _NETWORK, _TPU + "; peak also PaLM section 4"),
        "v5e": Chip("TPU v5 lite", 197e12, 16 * GIB, 819e9, 4, 200e9 / 4, _NETWORK, _TPU, 1.20, _GOOGLE),
        "v5p": Chip("TPU v5", 459e12, 95 * GIB, 2765e9, 6, 600e9 / 6, _NETWORK, _TPU, 4.20, _GOOGLE),
        "v6e": Chip("TPU v6 lite", 918e12, 32 * GIB, 1640e9, 4, 448e9 / 4, _NETWORK, _TPU, 2.70, _GOOGLE),
        "tpu7x": Chip("TPU7x", 2307e12 / 2, 96 * GIB, 7380e9 / 2, 6, 600e9 / 6 / 2, _NETWORK / 2, _TPU7),
        "A100": Chip("NVIDIA A100", 312e12, 80e9, 2039e9, 1, 300e9, 0.0, _NVIDIA),
        "H100": Chip("NVIDIA H100", 989e12, 80e9, 3350e9, 1, 450e9, _INFINIBAND, _NVIDIA, 6.155, _COREWEAVE),
        "H100 PCIe": Chip("NVIDIA H100 PCIe", 756e12, 80e9, 2000e9, 1, 300e9, 0.0, _NVIDIA),
        "H200": Chip("NVIDIA H200", 989e12, 141e9, 4800e9, 1, 450e9, _INFINIBAND, _NVIDIA, 6.305, _COREWEAVE),
        "B200": Chip("NVIDIA B200", 2250e12, 180e9, 8000e9, 1, 900e9, _INFINIBAND, _NVIDIA, 8.60, _COREWEAVE),
    }
)
"""Chips by their makers' names."""


_OTHER_KINDS = {"TPU v5p": "v5p", "TPU v5e": "v5e", "TPU v6e": "v6e"}


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a JAX device, by the longest kind that `device_kind` begins with; None for an unknown one.

    >>> chip_of("TPU v5 lite").flops / 1e12
    197.0
    """
    kinds = {chip.kind: chip for chip in CHIPS.values()} | {k: CHIPS[name] for k, name in _OTHER_KINDS.items()}
    prefixes = [kind for kind in kinds if device_kind.startswith(kind)]
    return kinds[max(prefixes, key=len)] if prefixes else None
