"""`import upalm`: every name opens, and none is loaded before it is used."""

import subprocess
import sys

import pytest

import upalm

HEAVY = {"jax", "equinox", "optax", "orbax", "grain", "sentencepiece", "matplotlib", "rich", "tyro"}


@pytest.mark.parametrize(
    "program",
    [
        "import upalm",
        "import upalm; upalm.__version__, upalm.PALM_TINY",
        "import upalm.ul2r",
        "from upalm import ul2r; ul2r.UL2R",
        "from upalm import checkpoints, data, distributed, evals, inference, interop, model, planning, training",
    ],
)
def test_imports_load_no_heavy_library(program):
    program += "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "upalm" in loaded and not HEAVY & set(loaded)


def test_every_name_of_the_front_door_opens():
    names = ["GenerationConfig", "LanguageModel", "PALM_TINY", "UPALM_TINY", "Sampler", "load", "load_model", "run"]
    names += ["ul2r", "evals"]
    assert set(names) <= set(dir(upalm))
    assert all(getattr(upalm, name) is not None for name in names)
    for package in (upalm.checkpoints, upalm.inference):
        assert all(getattr(package, name) is not None for name in dir(package) if not name.startswith("_"))
