"""Python source files that an installation has: the standard library, and the packages that upalm depends on."""

import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

_SKIPPED_FOLDERS = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled"),
    *("encodings", "pydoc_data"),  # generated tables and help topics, not source text
}
_SKIPPED_IN_PACKAGES = {
    *("test", "tests", "testdata", "internal_test_util"),
    *("_vendor", "_vendored", "vendor", "vendored", "extern", "third_party"),  # copies of other packages
}
_TEST_OR_GENERATED = re.compile(r"test_.*|.*_tests?|conftest|.*_pb2(_grpc)?|.*_gen|_.*_builtins")
_MOST_DIGITS = 0.1
"""Share of digits above which a file is a table of numbers."""


def stdlib_files() -> list[Path]:
    """Return the source files of Python's standard library, in order.

    Raises:
        ValueError: this Python has none.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
        # _sysconfigdata and its kind hold the paths of the machine that built Python
        paths += [Path(folder, f) for f in names if f.endswith(".py") and "sysconfigdata" not in f]
    if not paths:
        raise ValueError(
            f"this Python has no source files under {root} (a zipped or frozen standard library). "
            "Give your own text with --data."
        )
    return sorted(paths)


def package_files(name: str = "upalm") -> list[Path]:
    """Return the source files of all packages that a package needs at run time, without its own, in order.

    They are those that each installed package lists. Left out are tests, copies of other packages, generated code and
    tables of numbers.

    Raises:
        ValueError: the package is not installed, or none of those that it needs lists its files.
    """
    try:
        needed = _distributions(name)
    except metadata.PackageNotFoundError as e:
        raise ValueError(
            f"{name} is not installed, so what it needs is not known: pip install it, or use stdlib."
        ) from e
    paths = sorted(path for distribution in needed for path in _source_files(distribution))
    if not paths:
        raise ValueError(f"none of the {len(needed)} packages that {name} needs lists source files. Use stdlib.")
    return paths


def without_copies(paths: list[Path], first: set[Path]) -> list[Path]:
    """Return the paths without those whose text another one has, where those in `first` are kept before others."""
    kept: dict[bytes, Path] = {}
    for path in sorted(paths, key=lambda p: p not in first):
        kept.setdefault(hashlib.sha256(path.read_bytes().strip()).digest(), path)
    remaining = set(kept.values())
    return [path for path in paths if path in remaining]


def _distributions(name: str) -> list[metadata.Distribution]:
    """Packages that are needed at run time, directly or not, by name; those that are not installed are left out.

    Raises:
        PackageNotFoundError: the package itself is not installed.
    """
    found, pending = {}, [*_requirements(metadata.distribution(name))]
    while pending:
        key = pending.pop()
        if key in found or key == name:
            continue
        try:
            found[key] = metadata.distribution(key)
        except metadata.PackageNotFoundError:  # of another platform or Python
            continue
        pending += _requirements(found[key])
    return [found[key] for key in sorted(found)]


def _requirements(distribution: metadata.Distribution) -> Iterator[str]:
    """Names of the packages that a package needs, without those of its extras."""
    for requirement in distribution.requires or ():
        name = re.match(r"[\w.-]+", requirement)
        if name and not re.search(r";.*\bextra\b", requirement):
            yield re.sub(r"[-_.]+", "-", name[0]).lower()


def _source_files(distribution: metadata.Distribution) -> Iterator[Path]:
    for file in distribution.files or ():
        if file.suffix != ".py" or ".." in file.parts or _SKIPPED_IN_PACKAGES & set(file.parts):
            continue
        path = Path(str(file.locate()))
        if not _TEST_OR_GENERATED.fullmatch(file.stem) and path.is_file() and not _is_table(path.read_bytes()):
            yield path


def _is_table(content: bytes) -> bool:
    return sum(map(content.count, b"0123456789")) > _MOST_DIGITS * len(content)
