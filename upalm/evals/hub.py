"""Fetch public benchmark files from the Hugging Face hub.

Every data set of the hub has a Parquet copy on its branch `refs/convert/parquet`, as `CONFIG/SPLIT/*.parquet`. The
first fetch pins the commit of that branch: `fetched.json` in the data folder records commit, licence and checksum of
every file, and a copy of that record makes another folder fetch the same bytes. Needs `pip install 'upalm[data,hf]'`.
"""

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from upalm.evals.benchmark_files import parse_json
from upalm.evals.hub_sources import ELSEWHERE, SOURCES, HubSource
from upalm.evals.suites import Suite
from upalm.files import sha256_file, write_atomically
from upalm.hub_client import client_errors

BRANCH = "refs/convert/parquet"
RECORD = "fetched.json"
_NEEDS = "fetching needs huggingface_hub and pyarrow: pip install 'upalm[data,hf]'."
T = TypeVar("T")


class HubError(ValueError):
    """Raised when the hub does not give a file."""


class LocalHub:
    """Data sets on disk: `ROOT/OWNER/NAME/CONFIG/SPLIT/*.parquet`, beside files `commit` and `licence`.

    Raises:
        ValueError: no such folder.
    """

    def __init__(self, root: Path):
        if not root.is_dir():
            raise ValueError(f"--mirror {root} is no folder: expected one with data sets in OWNER/NAME.")
        self._root = root

    def resolve(self, repo: str) -> tuple[str, str]:
        """Return the newest commit of a data set's Parquet branch, and its licence."""
        if not (self._root / repo).is_dir():
            raise HubError(f"{self._root} has no data set {repo}")
        paths = (self._root / repo / name for name in ("commit", "licence"))
        commit, licence = (p.read_text(encoding="utf-8").strip() if p.is_file() else "not stated" for p in paths)
        return commit, licence

    def download(self, repo: str, commit: str, folder: str) -> list[Path]:
        """Return local copies of the Parquet files in a folder CONFIG/SPLIT, in order."""
        newest, _ = self.resolve(repo)
        if newest != commit:
            raise HubError(f"{self._root / repo} is at commit {newest}, and {RECORD} pins {commit}")
        return _check_found(sorted((self._root / repo / folder).glob("*.parquet")), repo, folder)


class OnlineHub:
    """The Hugging Face hub. Downloads resume, and stay in its own cache.

    Raises:
        ValueError: huggingface_hub is not installed.
    """

    def __init__(self):
        try:
            import huggingface_hub
        except ImportError as e:
            raise ValueError(_NEEDS) from e
        self._api = huggingface_hub.HfApi()
        self._names: dict[tuple[str, str], list[str]] = {}  # by data set and commit, so that each is listed once

    def resolve(self, repo: str) -> tuple[str, str]:
        commit = self._ask(repo, lambda: self._api.dataset_info(repo, revision=BRANCH)).sha
        card = self._ask(repo, lambda: self._api.dataset_info(repo)).card_data
        licence = (card.get("license") if card is not None else None) or "not stated"
        return str(commit), licence if isinstance(licence, str) else ", ".join(licence)

    def download(self, repo: str, commit: str, folder: str) -> list[Path]:
        if (repo, commit) not in self._names:
            listed = self._ask(repo, lambda: self._api.list_repo_files(repo, revision=commit, repo_type="dataset"))
            self._names[repo, commit] = sorted(name for name in listed if name.endswith(".parquet"))
        names = [name for name in self._names[repo, commit] if name.rpartition("/")[0] == folder]
        download = partial(self._api.hf_hub_download, repo, revision=commit, repo_type="dataset")
        return [Path(self._ask(repo, partial(download, name))) for name in _check_found(names, repo, folder)]

    def _ask(self, repo: str, call: Callable[[], T]) -> T:
        """Call the hub. It fails without a network, a data set, or the user's consent to the terms."""
        try:
            return call()
        except client_errors() as e:
            raise HubError(f"{repo}: {(str(e) or type(e).__name__).strip().splitlines()[0]}") from e


Hub = LocalHub | OnlineHub
"""Place that data sets of the Hugging Face hub are read from."""


def _check_found(files: list[T], repo: str, folder: str) -> list[T]:
    if not files:
        raise HubError(f"{repo} has no {folder}/*.parquet: its layout has changed")
    return files


class Fetched(NamedTuple):
    """A benchmark file, and what it was made from."""

    repo: str
    commit: str
    licence: str
    sha256: str
    n_rows: int


class Outcome(NamedTuple):
    """Outcome of fetching one file."""

    file: str
    status: str
    """`fetched`, `kept` (it was there), `failed` (the hub did not give it this time) or `missing` (not on the hub)."""
    note: str


def fetch(files: Iterable[str], folder: Path, hub: Hub) -> Iterator[Outcome]:
    """Fetch benchmark files that the folder does not have, and yield what became of each.

    A data set is read at one commit: the one that `fetched.json` pins, else the newest when its first file is fetched.

    Args:
        files: paths below the data folder, such as those of `list_files`.
        folder: data folder.
        hub: place of the data sets.

    Raises:
        ValueError: `fetched.json` is damaged, or a file differs from what it records.
    """
    record = _read_record(folder / RECORD)
    pins = {entry.repo: (entry.commit, entry.licence) for entry in record.values()}
    for file in files:
        path, entry = folder / file, record.get(file)
        if path.is_file():
            yield Outcome(file, "kept", _check_kept(path, entry))
        elif file not in SOURCES:
            hints = (hint for beginning, hint in ELSEWHERE.items() if file.startswith(beginning))
            yield Outcome(file, "missing", next(hints, "it is not on the hub"))
        else:
            try:
                fetched = _fetch_file(file, folder, hub, record, pins)
            except HubError as e:
                yield Outcome(file, "failed", str(e))
                continue
            yield Outcome(file, "fetched", f"{fetched.n_rows:,} rows of {fetched.repo}, licence {fetched.licence}")


def _fetch_file(
    file: str, folder: Path, hub: Hub, record: dict[str, Fetched], pins: dict[str, tuple[str, str]]
) -> Fetched:
    """Fetch a file, at the commit of `record` or `pins`; what is new is added to them."""
    source, path, entry = SOURCES[file], folder / file, record.get(file)
    if entry is None and source.repo not in pins:
        pins[source.repo] = hub.resolve(source.repo)
    commit, licence = (entry.commit, entry.licence) if entry else pins[source.repo]
    content, n_rows = _read_source(source, path, hub, commit)
    fetched = Fetched(source.repo, commit, licence, hashlib.sha256(content).hexdigest(), n_rows)
    if entry is not None and entry.sha256 != fetched.sha256:
        raise ValueError(
            f"{file} was fetched with another content than {folder / RECORD} records: delete its entry to take it."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if entry is None:  # before the file, because a file without an entry would pass for one of the user's
        record[file] = fetched
        _write_record(folder / RECORD, record)
    write_atomically(path, content)
    return fetched


def _read_source(source: HubSource, path: Path, hub: Hub, commit: str) -> tuple[bytes, int]:
    """Return the content of our file, in the format of its name, and the number of its rows."""
    try:
        table = _read_parquet(hub.download(source.repo, commit, source.split))
        rows = [source.convert(row) for row in source.gather(table)]
    except (KeyError, IndexError, TypeError, AttributeError) as e:
        raise HubError(f"{source.repo}, {source.split}: its columns have changed ({e!r})") from e
    if ".jsonl" in path.name:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    else:
        content = json.dumps(rows, ensure_ascii=False, indent=1).encode()
    return gzip.compress(content, mtime=0) if path.suffix == ".gz" else content, len(rows)


def _read_parquet(paths: list[Path]) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise ValueError(_NEEDS) from e
    for path in paths:
        try:
            yield from pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as e:
            raise HubError(f"{path} is damaged ({str(e).splitlines()[0]}): delete it") from e


def _check_kept(path: Path, entry: Fetched | None) -> str:
    if entry is None:
        return "not fetched by upalm"
    if sha256_file(path) != entry.sha256:
        raise ValueError(f"{path} has changed since it was fetched: delete it to fetch it again.")
    return f"as fetched, licence {entry.licence}"


def _read_record(path: Path) -> dict[str, Fetched]:
    if not path.is_file():
        return {}
    try:
        return {file: Fetched(**entry) for file, entry in parse_json(path.read_bytes(), str(path)).items()}
    except (TypeError, AttributeError) as e:
        raise ValueError(f"{path} is damaged or of another version: move it away, and the files with it.") from e


def _write_record(path: Path, record: dict[str, Fetched]) -> None:
    contents = {file: entry._asdict() for file, entry in sorted(record.items())}
    write_atomically(path, json.dumps(contents, indent=1) + "\n")


def list_files(suite: Suite) -> list[str]:
    """List the files of a suite, questions and exemplars; of a task's alternatives, the first that the hub has."""
    files: dict[str, None] = {}
    for task in suite.tasks:
        source = next((s for s in task.sources if s.file in SOURCES), task.sources[0])
        files |= dict.fromkeys((source.file, *source.needs))
    return list(files)
