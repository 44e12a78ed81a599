"""`upalm env`."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from upalm._version import __version__

PACKAGES = (
    *("jax", "jaxlib", "equinox", "optax", "grain", "orbax-checkpoint", "array_record", "numpy", "ml_dtypes"),
    *("sentencepiece", "tokenizers", "safetensors", "tyro", "rich", "libtpu", "jax-cuda12-plugin", "torch"),
    *("transformers", "lm_eval", "pyarrow"),
)
VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_ENABLE_X64", "GLIBC_TUNABLES")


@dataclass(frozen=True)
class Env:
    """Print versions, platform and devices, for a bug report."""

    def __call__(self) -> None:
        for name, value in self.facts().items():
            print(f"{name + ':':18} {value}")

    def facts(self) -> dict[str, str]:
        """Names and values of what a bug report should say; no paths, no host name, no secrets."""
        found = {"upalm": __version__, "python": platform.python_version(), "platform": platform.platform()}
        found["cpu"] = f"{os.cpu_count()} cores, {platform.machine()}"
        found |= {name: v for name in PACKAGES if (v := _version(name))}
        found |= {name: os.environ[name] for name in VARIABLES if name in os.environ}
        return found | {"devices": _devices()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _devices() -> str:
    """Kinds and counts of JAX's devices, or why there are none."""
    try:
        import jax

        kinds = [f"{device.platform} ({device.device_kind})" for device in jax.devices()]
    except (ImportError, RuntimeError, AssertionError) as e:  # JAX asserts that it found a backend
        return f"none: {str(e).splitlines()[0] if str(e) else 'JAX found no backend'}"
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
