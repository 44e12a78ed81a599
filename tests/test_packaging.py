"""The package that strangers install: dependencies, metadata, wheel, and the files that contributors expect."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = {"torch", "transformers", "lm_eval", "libtpu", "huggingface_hub", "pyarrow", "tokenizers"}
OPTIONAL |= {"tensorboardX", "wandb"}


def normalise(name: str) -> str:
    return re.split(r"[\[<>=;! ]", name)[0].lower().replace("_", "-")


def declared(extras: bool) -> set[str]:
    groups = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"].values() if extras else ())]
    return {normalise(requirement) for group in groups for requirement in group}


def imports(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"upalm"}


def undeclared(package: str, extras: bool) -> dict[str, list[str]]:
    owners, missing = packages_distributions(), {}
    for path in (ROOT / package).rglob("*.py"):
        for name in imports(ast.parse(path.read_text())):
            distributions = {normalise(d) for d in owners.get(name, [name])}
            if not distributions & declared(extras):
                missing.setdefault(name, []).append(str(path.relative_to(ROOT)))
    return missing


def test_every_imported_package_is_declared():
    assert undeclared("upalm", extras=True) == undeclared("recipes", extras=True) == {}


def test_only_optional_packages_are_left_to_extras():
    assert set(undeclared("upalm", extras=False)) <= OPTIONAL


def test_an_import_that_nobody_declared_is_found(monkeypatch):
    kept = [r for r in PROJECT["dependencies"] if not r.startswith("scipy")]
    monkeypatch.setitem(PROJECT, "dependencies", kept)
    assert "scipy" in undeclared("upalm", extras=True)


def test_metadata_say_what_a_stranger_asks():
    classifiers = PROJECT["classifiers"]
    for version in ("3.11", "3.12", "3.13"):
        assert f"Programming Language :: Python :: {version}" in classifiers
    assert "Typing :: Typed" in classifiers and (ROOT / "upalm" / "py.typed").is_file()
    assert PROJECT["urls"]["Paper"].endswith("2210.11399")
    known = pytest.importorskip("trove_classifiers", reason="trove_classifiers is absent").classifiers
    assert set(classifiers) <= known


def test_files_that_contributors_expect_exist():
    for name in (
        "LICENSE",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "CITATION.cff",
        "CHANGELOG.md",
        ".pre-commit-config.yaml",
    ):
        assert (ROOT / name).is_file(), name
    assert "upalm env" in (ROOT / ".github/ISSUE_TEMPLATE/bug.md").read_text()
    assert (ROOT / ".github/pull_request_template.md").is_file()


def test_workflows_call_documented_commands_only():
    yaml = pytest.importorskip("yaml", reason="PyYAML is absent")
    script = (ROOT / ".ci" / "run").read_text()
    parts = set(re.findall(r"^(\w+)\(\) \{", script, re.MULTILINE))
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert {path.stem for path in workflows} == {"docs", "release", "tests"}
    for path in workflows:
        jobs = yaml.safe_load(path.read_text())["jobs"].values()
        commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
        for command in commands:
            program, *words = command.split()
            assert program == ".ci/run" and set(words) <= parts, command


def test_hooks_are_the_linters_of_ci():
    yaml = pytest.importorskip("yaml", reason="PyYAML is absent")
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    script = (ROOT / ".ci" / "run").read_text()
    for hook in repositories[0]["hooks"]:
        assert f"  {hook['entry']}" in script, hook["entry"]


def test_benchmarks_need_nothing_outside_the_repository():
    for path in (ROOT / "benchmarks").rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"os\.environ\[|sys\.path", text), path
        private = re.findall(r"\b(?:shards|tokens|loop|decoding|loader)\._\w+", text)
        assert private == [], f"{path}: {private}"


def test_the_wheel_ships_recipes_and_models(tmp_path):
    pytest.importorskip("hatchling", reason="building a wheel needs hatchling")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    for wanted in ("_recipes/quickstart.py", *(f"assets/{m}/model.safetensors" for m in ("palm_tiny", "upalm_tiny"))):
        assert f"upalm/{wanted}" in names
    assert not [n for n in names if n.startswith("tests/")]


def test_shipped_checkpoints_take_10_mb_at_most():
    assert sum(p.stat().st_size for p in (ROOT / "upalm" / "assets").rglob("*") if p.is_file()) <= 10_000_000


def test_pins_are_versions_without_addresses():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all("==" in line and "/" not in line for line in lines)
