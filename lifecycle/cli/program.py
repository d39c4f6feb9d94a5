"""The program `lifecycle`: restarts with huge pages, then imports and runs the command line.

The command line's imports take seconds of CPU time; done before the restart, they would run twice.
"""

from lifecycle.core.huge_pages import restart_with_huge_pages


def main() -> None:
    """The entry point of the installed script."""
    restart_with_huge_pages()
    from lifecycle.cli.main import main as run

    run()
