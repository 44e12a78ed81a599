"""The longest tests of two runs of the suite side by side, as a table of docs/performance.md.

    pytest -n 2 --dist loadfile --junitxml=before.xml     # at one commit, and after.xml at another
    python benchmarks/slow_tests.py --before before.xml --after after.xml

Tests are told apart by their file's name and their own.
"""

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import tyro


@dataclass(frozen=True)
class Case:
    """Two runs."""

    before: Path
    """JUnit file of the first run."""
    after: Path
    """JUnit file of the second."""
    n: int = 20
    """Tests of each run to show."""


def seconds(file: Path) -> dict[str, float]:
    """Read the seconds of each test, set-up included, by file and name."""
    cases = ElementTree.parse(file).getroot().iter("testcase")
    return {f"{x.attrib['classname'].rpartition('.')[2]}: {x.attrib['name']}": float(x.attrib["time"]) for x in cases}


def longest(found: dict[str, float], n: int) -> list[str]:
    """Return the names of the longest tests, the longest first."""
    return sorted(found, key=lambda name: -found[name])[:n]


def main(args: Case) -> None:
    before, after = seconds(args.before), seconds(args.after)
    names = longest(before, args.n)
    names += [name for name in longest(after, args.n) if name not in names]
    print("| test | before, s | after, s |\n| --- | ---: | ---: |")
    for name in names:
        cells = (f"{found[name]:.0f}" if name in found else "not there" for found in (before, after))
        print(f"| `{name}` | {' | '.join(cells)} |")
    print(f"| all {len(before):,} and {len(after):,} | {sum(before.values()):.0f} | {sum(after.values()):.0f} |")


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
