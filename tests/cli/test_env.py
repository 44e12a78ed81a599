import os
import re
import subprocess
import sys

import jax

from upalm import __version__


def test_env_says_versions_platform_and_devices(upalm, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    upalm("env")
    out = capsys.readouterr().out
    for name, value in {"upalm": __version__, "jax": jax.__version__, "devices": "1 x cpu"}.items():
        assert re.search(rf"^{name}: +{re.escape(value)}", out, re.M)
    assert "xla_cpu_enable_fast_math" in out
    assert "secret" not in out and os.path.expanduser("~") not in out


def test_env_without_accelerators_has_no_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "upalm", "env"],
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr
    assert re.search("^devices: +none: ", done.stdout, re.M)
