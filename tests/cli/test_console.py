"""What the terminal shows, where it is narrow."""

import io
import logging
import re
import sys

import pytest

from stae_cli.cli.console import hide_log, print_table, progress_bar, show_log


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [20, 60, 200])
def test_words_of_tables_stay_whole(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    print_table("latents", ("key", "picture"), [("a/long/path/of/a/key", "100x200"), ("b", "1x1")])
    plain = re.sub("\x1b\\[[0-9;]*m", "", sys.stdout.getvalue())
    lines = [line.split() for line in plain.splitlines()]
    assert ["key", "picture"] in lines
    assert ["a/long/path/of/a/key", "100x200"] in lines
    assert ["b", "1x1"] in lines


@pytest.fixture
def log():
    show_log()
    yield logging.getLogger("stae_cli.anything")
    hide_log()


def test_the_log_is_written_above_the_progress_bar(monkeypatch, log):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(3, what="encode", quiet=False) as advance:
        advance(1)
        log.info("skipped %s", "a.png")
        advance(1)
        log.debug("two\nlines")
    assert sys.stderr.getvalue().count("encode: ") >= 4  # drawn again after each line
    plain = sys.stderr.getvalue().replace("\x1b[K", "\n").replace("\r", "\n")
    lines = [line for line in plain.splitlines() if line.startswith(("info", "debug"))]
    assert lines == ["info: skipped a.png", "debug: two\\nlines"]


def test_a_logged_exception_comes_with_its_traceback(monkeypatch, log):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    try:
        raise OSError("full")
    except OSError:
        log.debug("cannot write", exc_info=True)
    text = sys.stderr.getvalue()
    assert text.startswith("debug: cannot write\nTraceback (most recent call last):\n")
    assert text.endswith("OSError: full\n")
