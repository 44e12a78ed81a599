import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from support.cohere import oracle

ROOT = Path(__file__).parent.parent


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.filterwarnings("ignore:this model was never trained on gaps")
def test_python_in_the_pages_runs():
    found = {page.name: re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in PAGES}
    assert found["README.md"] and found["infilling.md"]
    for name, blocks in found.items():
        names = {}
        for block in blocks:
            exec(compile(block, name, "exec"), names)


@pytest.mark.filterwarnings("ignore:this model was never trained on gaps")
@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_run(path, monkeypatch, capsys):
    if "transformers" in path.stem:
        for name in ("torch", "transformers"):
            oracle(name)
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


def test_pages_name_tests_that_exist():
    sources = "".join(p.read_text() for folder in ("tests", "upalm") for p in (ROOT / folder).rglob("*.py"))
    names = {page.name: re.findall(r"`(test_\w+)`", page.read_text()) for page in PAGES}
    assert len(names["paper_map.md"]) > 15
    assert [n for some in names.values() for n in some if f"def {n}(" not in sources] == []


def test_local_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


_WITHOUT = """
import sys
sys.modules |= dict.fromkeys(("torch", "transformers", "palm_rlhf_pytorch", "lm_eval", "libtpu"))  # not to be imported
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_oracles_may_be_absent():
    """The README installs none: tests that need one are skipped."""
    files = [
        str(ROOT / "tests" / f"{name}.py")
        for name in ("interop/test_cohere", "evals/test_harness", "interop/test_palm_rlhf", "interop/test_researcher")
    ]
    command = [sys.executable, "-c", _WITHOUT, "-q", "-rs", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "torch is absent" in done.stdout and "transformers is absent" in done.stdout
