"""`python -m upalm` is `upalm`."""

from upalm.cli import main

main()
