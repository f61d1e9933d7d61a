"""Interrupts: held back, then let through; ignored ones stay ignored."""

import signal
import subprocess
import sys
import threading

import pytest

from stae_cli.interrupts import held_interrupts


@pytest.fixture(autouse=True)
def usual_handler():
    """Whatever the tests were started to do with SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def held(reached):
    with held_interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        reached.append(interrupts.signal)


def failing_meanwhile():
    with held_interrupts():
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError


def test_a_signal_takes_its_course_after_the_block():
    reached = []
    with pytest.raises(KeyboardInterrupt):
        held(reached)
    assert reached == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_goes_before_a_signal():
    with pytest.raises(ZeroDivisionError):
        failing_meanwhile()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ignored_signals_stay_ignored():
    """As `nohup` and shells in the background ask for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with held_interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
    assert interrupts.signal is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_threads_hold_nothing():
    found = []

    def work():
        with held_interrupts() as interrupts:
            found.append(interrupts.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_second_signal_ends_the_process_at_once(name, code):
    program = (
        "import signal\n"
        "from stae_cli.interrupts import held_interrupts\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with held_interrupts():\n"
        f"    signal.raise_signal(signal.{name})\n"
        "    print('held', flush=True)\n"
        f"    signal.raise_signal(signal.{name})\n"
        "    print('never', flush=True)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (code, "held\n")
