import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_readme_python_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_run(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


def test_paper_map_names_tests_and_code_that_exist():
    text = (ROOT / "docs" / "paper_map.md").read_text()
    sources = "".join(p.read_text() for folder in ("tests", "upalm") for p in (ROOT / folder).rglob("*.py"))
    names = re.findall(r"`(test_\w+)`", text)
    assert len(names) > 15
    assert [n for n in names if f"def {n}(" not in sources] == []


def test_local_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
