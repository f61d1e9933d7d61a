"""What `stae` says before any command: its version, its help, and what is no command line."""

import pytest

from stae_cli import __version__


def test_the_version(stae):
    assert (stae("--version").code, stae("--version").out) == (0, f"stae {__version__}\n")


@pytest.mark.parametrize("command", [(), ("weights",)])
def test_without_a_command_there_is_help(stae, command):
    bare, asked = stae(*command), stae(*command, "--help")
    assert (bare.code, bare.out) == (2, "")
    assert bare.err.strip() == asked.out.strip()
    assert "Commands:\n" in bare.err


def test_an_unknown_command_is_named(stae):
    stae("encoed").assert_fails(2, "encoed", "stae --help")
