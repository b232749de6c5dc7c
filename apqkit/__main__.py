"""``python -m apqkit`` is the command line."""

from apqkit.cli import main

main()
