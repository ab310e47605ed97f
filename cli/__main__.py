"""Where the `tersor` command starts: an interrupt while the libraries load is an interrupt, too."""

from __future__ import annotations

import sys

INTERRUPTED = 130  # what shells report for SIGINT


def main() -> None:
    """Loads the command and runs it."""
    try:
        from tersor.cli.main import main as run
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
