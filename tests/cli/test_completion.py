"""The script runs in bash, as its Tab key would run it."""

import shutil
import subprocess
import sys

import pytest

from upalm.cli import completion


@pytest.fixture(scope="module")
def script():
    """The script comes from its own process: some recipes leave a path open, which the tests' type checks refuse."""
    done = subprocess.run([sys.executable, "-m", "upalm", "--completion", "bash"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("upalm infi", "infill"),
        ("upalm data ", "build show check"),
        ("upalm infill --chec", "--checkpoint"),
        ("upalm infill --mode ", "auto none s2s nlu nlg"),
        ("upalm infill --text ", ""),
        ("upalm infill -c folder --mod", "--mode"),
        ("upalm run palm_ti", "palm_tiny"),
        ("upalm run ul2r_tiny caus", "causal"),
        ("upalm run ul2r_tiny causal --data.mix", "--data.mixture"),
        ("upalm run quickstart --from", "--from-scratch"),
        ("upalm recipes s", "show"),
        ("upalm recipes cp palm_ti", "palm_tiny"),
        ("upalm plan ul2r_540b 54", "540b"),
        ("upalm --comp", "--completion"),
        ("upalm --completion z", "zsh"),
    ],
)
def test_tab_completes(script, words, expected):
    split = " ".join(f"'{word}'" for word in words.split(" "))
    ask = f'COMP_WORDS=({split}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _upalm; echo "${{COMPREPLY[*]}}"'
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (expected, "")


def test_another_shell_is_refused(upalm):
    with pytest.raises(SystemExit, match="error: --completion fish: expected"):
        upalm("--completion", "fish")


def test_zsh_gets_bash_completion_first():
    assert completion._ZSH.endswith("bashcompinit\n")
