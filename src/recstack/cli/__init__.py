"""The command line: ``recstack demo | prepare | train | evaluate | recommend | serve | models``."""

from __future__ import annotations


def main() -> None:
    """The entry point of the script ``recstack``."""
    from recstack.cli.app import app

    app()
