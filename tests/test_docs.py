"""The README, the pages and the examples: their code runs, their commands parse, their links and names exist."""

import ast
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from support.cohere import oracle

from upalm.cli import main
from upalm.training import recipes

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [page.name for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language; "" has the commands."""
    fenced = re.findall(r"^```(.*?)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def commands(program: str) -> list[tuple[str, list[str]]]:
    """Every documented call of a program: the page, and the words after the program."""
    found = []
    for page in PAGES:
        for line in "\n".join(blocks(page, "")).replace("\\\n", "").splitlines():
            for part in line.split(" #")[0].split("&&"):
                words = shlex.split(part.replace("...", ""))
                if words[: len(program.split())] == program.split():
                    found.append((page.name, words[len(program.split()) :]))
    return found


@pytest.mark.parametrize("page", ["results.md", "infilling.md", "training.md", "performance.md"])
def test_tables_of_results_are_those_of_their_numbers(page):
    with_tables = runpy.run_path(str(ROOT / "docs" / "results_tables.py"))["with_tables"]
    assert with_tables(page) == (ROOT / "docs" / page).read_text("utf-8"), "run: python docs/results_tables.py"


@pytest.mark.filterwarnings("ignore:this model was never trained on gaps")
@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_in_the_pages_runs(page, capsys):
    """A block of text after one of Python is its output."""
    names = {}
    fenced = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", page.read_text(), re.DOTALL | re.MULTILINE)
    for block, output in fenced:
        exec(compile(block, page.name, "exec"), names)
        printed = capsys.readouterr().out
        assert not output or printed == output


def test_pages_have_python_to_run():
    assert {"README.md", "infilling.md"} <= {page.name for page in PAGES if blocks(page, "python")}


@pytest.mark.filterwarnings("ignore:this model was never trained on gaps")
@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_run(path, monkeypatch, capsys):
    if "transformers" in path.stem:
        for name in ("torch", "transformers"):
            oracle(name)
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


def test_my_task_keeps_its_questions_in_a_folder(monkeypatch, tmp_path, capsys):
    path = ROOT / "examples" / "my_task.py"
    monkeypatch.setattr(sys, "argv", [str(path), str(tmp_path / "questions")])
    runpy.run_path(str(path), run_name="__main__")
    assert (tmp_path / "questions" / "membership.jsonl").is_file()


def test_commands_of_the_examples_parse():
    docstrings = [ast.get_docstring(ast.parse(path.read_text())) for path in (ROOT / "examples").glob("*.py")]
    found = [line for text in docstrings for line in text.splitlines() if line.startswith("upalm ")]
    assert found
    for line in found:
        main.parse(*main.split(shlex.split(line, comments=True)[1:]))


def test_documented_commands_parse():
    found = commands("upalm")
    assert len(found) > 30
    for page, words in found:
        if any(word in ("RECIPE", "CONFIG") for word in words) or words[0].startswith("--"):
            continue
        try:
            name, rest = main.split(words)
            main.parse(name, rest)
        except (SystemExit, ValueError) as e:
            if isinstance(e, SystemExit) and not e.code:
                continue  # help
            raise AssertionError(f"{page}: upalm {shlex.join(words)}: {e}") from e
        if name == "run" and not rest[0].startswith("-"):
            assert recipes.find(rest[0])


def test_documented_benchmarks_parse(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    found = [(page, words) for page, words in commands("python") if words[0].startswith("benchmarks/")]

    assert len({words[0] for _, words in found}) >= 6
    for page, (script, *options) in found:
        spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        try:
            tyro.cli(module.Case, args=options)
        except SystemExit as e:
            raise AssertionError(f"{page}: {script} {options}") from e


def test_pages_name_tests_that_exist():
    sources = "".join(p.read_text() for folder in ("tests", "upalm") for p in (ROOT / folder).rglob("*.py"))
    names = {page.name: re.findall(r"`(test_\w+)`", page.read_text()) for page in PAGES}
    assert len(names["paper_map.md"]) > 15
    missing = {page: [n for n in some if f"def {n}(" not in sources] for page, some in names.items()}
    assert {page: some for page, some in missing.items() if some} == {}


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_local_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^):]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_readme_has_the_tree_of_the_packages():
    """A row per package, its modules and packages in order of the alphabet."""
    rows = re.findall(r"^\| \[(\w+)\]\(upalm/\1\) \| .+? \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    listed = {name: re.findall(r"\[(\w+/?)\]", modules) for name, modules in rows}
    packages = sorted(p for p in (ROOT / "upalm").iterdir() if (p / "__init__.py").is_file())
    assert listed.keys() == {p.name for p in packages}
    for package in packages:
        modules = sorted(p.stem for p in package.glob("*.py") if p.stem != "__init__")
        folders = sorted(f"{p.parent.name}/" for p in package.glob("*/__init__.py"))
        assert sorted(listed[package.name]) == sorted([*modules, *folders]), package.name


def test_public_aliases_have_a_docstring():
    """Without one the API pages leave them out. (Constants are in capitals.)"""
    for path in (ROOT / "upalm").rglob("*.py"):
        body = ast.parse(path.read_text()).body
        for node, after in zip(body, [*body[1:], None], strict=True):
            names = [x.id for x in node.targets if isinstance(x, ast.Name)] if isinstance(node, ast.Assign) else []
            for name in names:
                is_alias = re.fullmatch(r"[A-Z]\w*[a-z]\w*", name)
                is_documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert not is_alias or is_documented, f"{path}: {name}"


def test_glossary_has_one_entry_per_word():
    terms = re.findall(r"^\*\*(.+)\*\*$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert len(terms) >= 15 and len(set(terms)) == len(terms)


def test_nothing_cites_what_readers_cannot_open():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git checkout: there is no list of files")
    words = re.compile(r"fact[ -]sheet", re.IGNORECASE)
    for path in map(ROOT.joinpath, listed.stdout.split()):
        if path.suffix in (".py", ".md", ".toml") and path != Path(__file__) and path.exists():
            assert not words.search(path.read_text()), path


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
        for name in ("interop/test_architectures", "evals/test_harness", "interop/test_palm_rlhf", "cli/test_interop")
    ]
    command = [sys.executable, "-c", _WITHOUT, "-q", "-rs", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "torch is absent" in done.stdout and "transformers is absent" in done.stdout


TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("[0-9]*.py"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_tutorials_have_their_parts(path):
    """The site's build executes them; here is what a build cannot see."""
    text = path.read_text()
    cells = re.split(r"^# %%", text, flags=re.MULTILINE)
    assert "**Question:**" in cells[1], "a question at the top"
    assert '"skip-execution"' in cells[2] and "%pip install" in cells[2], "a first cell that installs"
    assert "## Now change this" in cells[-1], "exercises at the end"
    assert f"notebooks/{path.stem}.ipynb" in cells[1], "the notebook to download"
    assert len(re.findall(r"^\s*assert ", text, re.MULTILINE)) >= 3, "assertions hold what the prose says"
    pictures = [cell for cell in cells if "plt.show()" in cell]
    assert pictures and all('{"image": {"alt": "' in cell for cell in pictures), "every picture has a text"
    wide = [line for line in text.splitlines() if len(line) > 88 and not line.startswith(("# %%", "# <a "))]
    assert wide == [], "code wider than 88 columns scrolls"


def test_every_page_is_in_the_contents():
    contents = (ROOT / "docs" / "index.md").read_text().splitlines()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.stem == "index" or page.stem in contents, f"add {page.stem} to docs/index.md"
