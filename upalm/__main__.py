"""The `upalm` command, and `python -m upalm`."""

import gc
import sys

from upalm.cli import main as cli
from upalm.cli.huge_pages import use_huge_pages


def main() -> None:
    """Run the command line; commands that compute get huge pages first."""
    name, *rest = sys.argv[1:] or [""]
    if name in cli.COMPUTING and not {"-h", "--help"} & set(rest):
        use_huge_pages()
    try:
        cli.main()
    finally:
        gc.freeze()  # else Python, as it ends, searches all objects of JAX for cycles, which takes 0.4 s


if __name__ == "__main__":
    main()
