"""`python -m ingest` is the command `ingest`."""

from ingest.commands.cli import main

main()
