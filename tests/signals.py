"""Processes of tests that get signals, whatever the tests themselves were started to ignore."""

import signal


def heed_interrupts() -> None:
    """Run in a new process: a parent in the background may have it ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
