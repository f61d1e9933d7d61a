"""Keys from archives: none leads out of DEST, on any system."""

from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stae_cli.errors import InputError
from stae_cli.storage.names import check_key, problem_of

SOUND = ["a", "a/b/c", "a.b", "...a", "été/日本", "a b", "-a", "console", "auxiliary/x", "com10",
         "new\nline", "x" * 240, "a/" * 500 + "b"]  # fmt: skip
UNSOUND = ["", "/", "/a", "a/", "a//b", ".", "..", "./a", "a/../b", "a/..", "a\\b", "c:", "c:/a",
           "a:stream", "nul", "NUL.txt", "a/con", "Com1.b", "lpt¹", "aux ", "prn.", "a\0b",
           "__metadata__", "\ud800", "x" * 241, "é" * 121]  # fmt: skip


@pytest.mark.parametrize("key", SOUND)
def test_sound_keys(key):
    check_key(key)
    assert problem_of(key) is None


@pytest.mark.parametrize("key", UNSOUND)
def test_unsound_keys(key):
    with pytest.raises(InputError):
        check_key(key)
    assert problem_of(key)


@given(st.text(st.sampled_from(list("ab./\\: \0cC1oOnNuUlLxX"))) | st.text())
def test_what_is_let_through_stays_below_dest(key):
    if problem_of(key):
        return
    assert not PurePosixPath(key).is_absolute()
    assert not PureWindowsPath(key).drive
    assert not PureWindowsPath(key).root
    for path in (PurePosixPath(key), PureWindowsPath(key)):
        assert ".." not in path.parts
        assert len(path.parts) == len(key.split("/"))  # nothing is folded away
