"""The `stae` program; `python -m stae_cli` is the same."""

import sys

INTERRUPTED = 130


def run() -> None:
    """Loads and runs the command line; Ctrl-C may come while it still loads."""
    try:
        from stae_cli.cli.main import run as run_loaded

        run_loaded()
    except (KeyboardInterrupt, RuntimeError) as error:
        # Before 3.12 Python wraps what is raised while a class is created.
        if KeyboardInterrupt not in (type(error), type(error.__cause__)):
            raise
        sys.stderr.write("error: interrupted\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    run()
