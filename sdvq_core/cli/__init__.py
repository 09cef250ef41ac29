"""The command line of the contract (DESIGN.md, section 5): progress on stderr, `--json` puts one object on stdout."""

from sdvq_core.cli.entry import main

__all__ = ["main"]
