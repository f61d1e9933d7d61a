"""The README and the command line agree: every command, option and name it shows exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shell_lines():
    """Every `stae ...` command line in a console block, continuation lines joined."""
    for block in re.findall(r"```(?:console|sh|bash)\n(.*?)```", README, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            text = line.removeprefix("$ ").strip()
            if text.startswith("stae "):
                yield text.partition(" #")[0]


def options_of(command):
    from typer.main import get_command

    from stae_cli.cli.main import app

    found = get_command(app)
    for name in command:
        found = found.commands[name]
    return {flag for parameter in found.params for flag in parameter.opts}


@pytest.mark.parametrize("line", sorted(set(shell_lines())))
def test_command_lines_in_the_readme_exist(line):
    from typer.main import get_command

    from stae_cli.cli.main import app

    words = shlex.split(line)[1:]
    command, found = [], get_command(app)
    while words and words[0] in getattr(found, "commands", {}):
        command.append(words.pop(0))
        found = found.commands[command[-1]]
    flags = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert command or flags == {"--help"}, line
    assert flags <= options_of(command) | {"--help", "-h"}, line


def test_every_command_is_in_the_readme():
    from stae_cli.cli.main import app

    for command in app.registered_commands:
        assert f"stae {command.name}" in README
    for group in app.registered_groups:
        assert f"stae {group.name}" in README


def test_every_option_of_the_main_commands_is_in_the_readme():
    for command in ("encode", "decode", "train"):
        for flag in options_of([command]):
            if flag.startswith("--"):
                assert f"`{flag}" in README or f" {flag}" in README, flag


def test_files_that_the_readme_points_to_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_make_targets_in_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z]+)`?", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_python_in_the_readme_runs(stae, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    photo = ROOT / "examples" / "photos" / "kodim23.png"
    assert stae("encode", photo, tmp_path / "latents", "--weights", "builtin").code == 0
    program = [sys.executable, "-W", "error", "-c", "\n".join(blocks)]
    ran = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_no_placeholder_is_left_in_the_readme():
    names = set(re.findall(r"[A-Z]{3,}_[A-Z_]+", README))
    variables = {"STAE_WEIGHTS", "STAE_TRITON", "RAY_ADDRESS", "OMP_WAIT_POLICY"}
    assert names == variables


@pytest.mark.parametrize("command", ["encode", "decode", "roundtrip", "verify", "stats", "train"])
def test_workers_write_only_where_something_is_written(stae, command):
    help_text = " ".join(stae(command, "--help").out.split())
    assert "Reading threads" in help_text
    assert ("as many writing ones" in help_text) == (command in ("encode", "decode", "roundtrip"))


def test_metavars_in_the_table_of_commands_are_those_of_the_help(stae):
    for command, words in re.findall(r"^\| `stae (\w+) ([^`]*)`", README, re.MULTILINE):
        usage = " ".join(stae(command, "--help").out.partition("\n\n")[0].split())
        for word in re.findall(r"[A-Z]{3,}", words.partition("--")[0]):
            assert word in usage, (command, word)
