"""`upalm eval fetch`."""

from dataclasses import dataclass
from pathlib import Path

from upalm.cli import options
from upalm.cli.evaluate import HELD_OUT


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Fetch the public files of a suite from the Hugging Face hub.

    Files that the data folder has are kept, so that the same command resumes. fetched.json beside them pins commits and
    checksums. Files that are not on the hub are listed with where to get them.
    """

    suite: str
    """Name of a suite of benchmarks (`upalm eval --help` lists them; held_out measures text of yours)."""
    data: options.Out
    """Folder for the files."""
    tasks: tuple[str, ...] = ()
    """Fetch the files of these tasks only."""
    mirror: Path | None = None
    """Folder with copies of data sets in the hub's layout, OWNER/NAME/CONFIG/SPLIT/*.parquet, in place of the hub."""

    def __call__(self) -> None:
        from upalm.evals import hub, suites
        from upalm.evals.infilling import suite as infilling_suite

        if self.suite == infilling_suite.NAME:
            if self.tasks:
                raise ValueError(f"suite {self.suite} has no use for --tasks: leave it out.")
            files = infilling_suite.list_files()
        elif self.suite == HELD_OUT:
            raise ValueError(f"suite {self.suite} has no files to fetch: `upalm eval --data TEXT` takes text of yours.")
        else:
            others = (infilling_suite.NAME,)
            files = hub.list_files(suites.find_suite(self.suite, others).select(self.tasks))
        place = hub.LocalHub(self.mirror) if self.mirror is not None else hub.OnlineHub()
        self.data.mkdir(parents=True, exist_ok=True)
        counts: dict[str, int] = {}
        for outcome in hub.fetch(files, self.data, place):
            counts[outcome.status] = counts.get(outcome.status, 0) + 1
            print(f"{outcome.status:8} {outcome.file}: {outcome.note}", flush=True)
        print(", ".join(f"{n} {status}" for status, n in counts.items()) + f"; files in {self.data}")
        if "failed" in counts:
            raise ValueError(
                f"{counts['failed']} of {len(files)} files could not be fetched: the same command tries again."
            )
