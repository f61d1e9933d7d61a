"""What the terminal shows, where it is narrow."""

import io
import re
import sys

import pytest

from stae_cli.cli.console import print_table


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
