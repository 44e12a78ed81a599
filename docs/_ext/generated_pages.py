"""Pages that are made from the package: the API by package, `--help` of every command, and the examples."""

import ast
import io
import os
import re
import textwrap
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).parents[2]
WIDTH = 86  # columns of code that a page shows without scrolling
PACKAGES = (
    "ul2r",
    "distributed",
    "data",
    "model",
    "checkpoints",
    "inference",
    "training",
    "evals",
    "interop",
    "planning",
)


def _summary(path: Path) -> str:
    """First line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]


def _face(package: Path) -> str:
    """Names that a package's `__init__` imports, each a link to where it is defined."""
    own = ".".join(package.relative_to(ROOT).parts)
    links = []
    for node in ast.walk(ast.parse((package / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module not in ("etils", "upalm"):
            module = f"{own}.{node.module}" if node.level else node.module
            names = [alias.name for alias in node.names if not alias.name.startswith("_")]
            links += [f"{{py:obj}}`{name} <{module}.{name}>`" for name in names]
    return f"Names of `{own}`: {', '.join(links)}."


def _modules(package: Path) -> list[Path]:
    return sorted(p for p in package.rglob("*.py") if p.name != "__init__.py" and not p.name.startswith("_"))


def _api(folder: Path) -> None:
    names = []
    for package in PACKAGES:
        source = ROOT / "upalm" / package
        text = [f"# upalm.{package}", "", _summary(source / "__init__.py"), "", _face(source), ""]
        for path in _modules(source):
            dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            text += [f"## {dotted.removeprefix('upalm.')}", "", "```{eval-rst}", f".. automodule:: {dotted}", "```", ""]
        _write(folder / f"{package}.md", text)
        names.append(f"{package} <{package}>")
    index = ["# API", "", "From the docstrings; every name links to its source.", "", _face(ROOT / "upalm"), ""]
    index += ["```{toctree}", *names, "```"]
    _write(folder / "index.md", index)


def _help(arguments: list[str]) -> str:
    from upalm.cli import main

    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        try:
            main.dispatch(arguments)
        except SystemExit:
            pass
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).strip()
    lines = [
        textwrap.wrap(line, WIDTH, subsequent_indent="  ") if len(line) > WIDTH else [line]
        for line in plain.split("\n")
    ]
    return "\n".join(line for some in lines for line in some)


def _commands(folder: Path) -> None:
    from upalm.cli import main

    os.environ |= {"COLUMNS": str(WIDTH), "NO_COLOR": "1"}
    text = ["# Commands", "", "What `--help` prints.", "", "```text", _help([]), "```", ""]
    for name, (_, summary) in main.COMMANDS.items():
        text += [f"## upalm {name}", "", _escape(summary), "", "```text", _help([*name.split(), "--help"]), "```", ""]
    _write(folder / "commands.md", text)


def _examples(folder: Path) -> None:
    names = []
    for path in sorted((ROOT / "examples").glob("*.py")):
        include = f"../../../examples/{path.name}"
        text = [f"# {path.name}", "", f"```{{literalinclude}} {include}", ":language: python", "```"]
        _write(folder / f"{path.stem}.md", text)
        names.append(path.stem)
    index = ["# Examples", "", "Files that run as they are, and that the tests run.", "", "```{toctree}", *names, "```"]
    _write(folder / "index.md", index)


def _changelog(folder: Path) -> None:
    _write(folder / "changelog.md", (ROOT / "CHANGELOG.md").read_text().splitlines())


def _escape(text: str) -> str:
    return re.sub(r"(<\w+>)", r"`\1`", text)


def _write(path: Path, lines: list[str]) -> None:
    """Write, unless it says so already: what did not change is not built again."""
    text = "\n".join(lines) + "\n"
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _generate(app) -> None:
    folder = Path(app.srcdir) / "generated"
    _api(folder / "api")
    _commands(folder)
    _examples(folder / "examples")
    _changelog(folder)


def _inside(app, name, source) -> None:
    """Links that leave docs/ lead to the generated pages."""
    up = "../" * name.count("/")
    text = re.sub(r"\]\(\.\./examples/(\w+)\.py\)", rf"]({up}generated/examples/\1.md)", source[0])
    text = re.sub(r"\]\(\.\./CHANGELOG\.md\)", rf"]({up}generated/changelog.md)", text)
    source[0] = text


def setup(app):
    """Register."""
    app.connect("builder-inited", _generate)
    app.connect("source-read", _inside)
    return {"parallel_read_safe": True}
