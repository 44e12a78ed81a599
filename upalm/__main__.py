"""The `upalm` command, and `python -m upalm`."""

from upalm.cli.huge_pages import use_huge_pages


def main() -> None:
    """`upalm.cli.main`, in a process set up for it."""
    use_huge_pages()
    from upalm.cli import main as cli  # after the process was started again

    cli.main()


if __name__ == "__main__":
    main()
