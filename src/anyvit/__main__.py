"""`python -m anyvit` is the command `anyvit`."""

from anyvit.cli import main

main()
