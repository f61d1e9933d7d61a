"""`python -m stae_cli` is `stae`."""

from stae_cli.cli.main import run

if __name__ == "__main__":
    run()
