"""The program around the commands: version, help, numbers and streams that do not do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from stae_cli import __version__
from stae_cli.cli.main import TerminationError, app, main
from tests.pictures import EXAMPLES, write_photos
from tests.signals import heed_interrupts


def test_the_version(stae):
    assert (stae("--version").code, stae("--version").out) == (0, f"stae {__version__}\n")


@pytest.mark.parametrize("command", [(), ("weights",)])
def test_without_a_command_there_is_help(stae, command):
    bare, asked = stae(*command), stae(*command, "--help")
    assert (bare.code, bare.out) == (2, "")
    assert bare.err.strip() == asked.out.strip()
    assert "Commands:\n" in bare.err


def test_an_unknown_command_is_named(stae):
    stae("encoed").assert_fails(2, "encoed", "`stae --help`")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["decode"], ["`stae decode` needs SOURCE and DEST", "`stae decode --help`"]),
        (["decode", "latents"], ["`stae decode` needs SOURCE and DEST"]),
        (["roundtrip", "photos"], ["`stae roundtrip` needs SOURCE and DEST"]),
        (["encode", "a", "b", "--sqare", "8"], ["--sqare", "`stae encode --help`"]),
        (["weights", "show"], ["NAME", "`stae weights show --help`"]),
        (["inspect"], ["SOURCE", "`stae inspect --help`"]),
        (["encode", "a", "b", "--device", "cpu,"], ["the name of a device is empty"]),
        (["flops", "--size", "99999992"], ["size `99999992` is too large"]),
        (["weights", "convert", "builtin", "absent/x.safetensors"], ["no folder `absent`"]),
    ],
    ids=lambda each: " ".join(each) if each[0][0] not in "`-" else "",
)
def test_what_is_wrong_is_said_with_where_to_look(stae, arguments, words):
    stae(*arguments).assert_fails(2, *words)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["encode", EXAMPLES, "out"], "run the same command again to continue where it stopped"),
        (["encode", EXAMPLES, "out", "--overwrite"], ""),
        (["bench", "--size", "8"], ""),
        (["weights", "show", "builtin"], ""),
    ],
)
def test_an_interruption_promises_only_what_is_true(stae, monkeypatch, tmp_path, arguments, hint):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    for name in ("checkpoints.checkpoint.load_checkpoint", "cli.bench_commands.load_weights"):
        monkeypatch.setattr(f"stae_cli.{name}", interrupted)
    monkeypatch.setattr("stae_cli.cli.weights._load", interrupted)
    ran = stae(*arguments)
    assert ran.code == 130
    assert ran.err == "error: interrupted\n" + f"hint: {hint}\n" * bool(hint)


def test_help_has_a_section_for_each_kind_of_option(stae):
    sections = dict(
        section.split(":\n", 1) for section in stae("encode", "--help").out.split("\n\n")[3:]
    )
    assert list(sections) == [
        "Arguments",
        "Network",
        "Images",
        "Files",
        "Machine",
        "Sharing work",
        "General options",
    ]
    options = {
        line.split()[0] for text in sections.values() for line in text.splitlines() if "--" in line
    }
    assert {"--weights", "--square", "--strict", "--workers", "--engine", "--json"} <= options
    assert "--square" in sections["Images"]
    assert "--help" in sections["General options"]
    assert "[env var: STAE_WEIGHTS; default: stupidae]" in " ".join(sections["Network"].split())
    assert "x>=" not in "".join(sections.values())


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("command", ["encode", "train", "bench"])
def test_help_fits_the_terminal(stae, monkeypatch, command, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = stae(command, "--help").out.splitlines()
    assert 50 < max(map(len, lines)) <= columns


@pytest.mark.parametrize(
    ("arguments", "choices"),
    [
        (["encode", "a", "b", "--dtype", "int8"], "'auto', 'float16', 'bfloat16', 'float32'"),
        (["encode", "a", "b", "--edges", "wrap"], "'pad', 'crop', 'error'"),
        (["encode", "a", "b", "--engine", "spark"], "'local', 'ray'"),
        (["encode", "a", "b", "--save-dtype", "int8"], "'float16', 'float32'"),
        (["decode", "a", "b", "--format", "gif"], "'png', 'webp', 'jpg'"),
        (["train", "a", "--out", "b", "--init", "zero"], "'pca', 'random'"),
        (["train", "a", "--out", "b", "--optimizer", "sgd"], "'adamw', 'muon'"),
        (["train", "a", "--out", "b", "--recipe", "mine"], "'default', 'published'"),
        (["weights", "convert", "a", "b", "--dtype", "int8"], "'keep', 'float16'"),
    ],
    ids=lambda each: " ".join(each[-2:]) if isinstance(each, list) else "",
)
def test_a_wrong_choice_is_answered_with_the_choices(stae, arguments, choices):
    ran = stae(*arguments)
    ran.assert_fails(2, f"'{arguments[-2]}': '{arguments[-1]}' is not one of {choices}")


@pytest.mark.parametrize(
    "arguments",
    [["encode", "", "out"], ["encode", EXAMPLES, ""], ["verify", EXAMPLES, "--against="]],
    ids=["source", "dest", "option"],
)
def test_a_variable_of_the_shell_that_is_unset(stae, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stae(*arguments).assert_fails(2, "unset?")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def broken(monkeypatch):
    """An `encode` that has a bug."""

    def fail(*_arguments, **_options):
        raise RuntimeError("cuDNN error: BAD\nand more")

    monkeypatch.setattr("stae_cli.runs.encode_plan.plan_encode", fail)


@pytest.mark.usefixtures("broken")
def test_an_unexpected_error_is_one_line(stae, tmp_path):
    ran = stae("encode", EXAMPLES, tmp_path / "out")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        "error: unexpected RuntimeError: cuDNN error: BAD\n"
        "hint: run the same command with `--verbose`, and report what it prints\n"
    )


@pytest.mark.usefixtures("broken")
def test_an_unexpected_error_comes_with_its_traceback_if_verbose(capsys, tmp_path):
    assert main(["encode", str(EXAMPLES), str(tmp_path / "out"), "--verbose"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "in fail" in err
    assert "error: unexpected RuntimeError: cuDNN error: BAD\nhint: please report it" in err


@pytest.mark.parametrize("wrapped", [KeyboardInterrupt, TerminationError])
def test_a_wrapped_interrupt_is_not_an_unexpected_error(stae, monkeypatch, wrapped):
    def fail(*_arguments, **_options):
        raise RuntimeError("Error calling __set_name__") from wrapped()

    monkeypatch.setattr("stae_cli.runs.encode_plan.plan_encode", fail)
    with pytest.raises(RuntimeError, match="__set_name__"):
        stae("encode", EXAMPLES, "out")


def test_every_command_can_be_verbose(stae):
    def leaves(command):
        below = getattr(command, "commands", {}).values()
        return [command, *(leaf for each in below for leaf in leaves(each))]

    whole = get_command(app)
    for command in leaves(whole):
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert ({"--verbose", "-v"} <= flags) == (command.name not in ("stae", "weights"))


@pytest.mark.parametrize("given", [("-v", "-q"), ("--quiet", "--verbose")])
@pytest.mark.parametrize("command", ["encode", "bench"])
def test_verbose_and_quiet_contradict_each_other(stae, command, given):
    stae(command, *["a", "b"][: 2 * (command == "encode")], *given).assert_fails(
        2, "`--verbose` and `--quiet`"
    )


def test_verbose_logs_what_runs_where_on_stderr(stae, tiny, tmp_path):
    command = ("encode", EXAMPLES / "kodim23.png", tmp_path / "out", "--weights", tiny)
    ran = stae(*command, "--device", "cpu", "--verbose", "--json")
    assert (ran.code, ran.json["done"]) == (0, 1)
    assert "info: checkpoint tiny.safetensors, fingerprint " in ran.err
    assert f"from {tiny}" in ran.err
    assert "info: device cpu, float32" in ran.err
    assert "info: " not in stae(*command, "--device", "cpu", "--overwrite").err


def ran_as_a_program(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "stae_cli", *map(str, arguments)],
        capture_output="stdout" not in options,
        stderr=subprocess.PIPE if "stdout" in options else None,
        text=True,
        **options,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments", [("flops", "--json"), ("flops",), ("--version",), ("--help",)], ids=" ".join
)
def test_a_full_stdout_is_an_error(arguments):
    with Path("/dev/full").open("w") as full:
        ran = ran_as_a_program(*arguments, stdout=full)
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: ")
    assert "No space left on device" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "Exception" not in ran.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="closes descriptors as shells do")
def test_a_closed_stdout_is_an_error():
    ran = ran_as_a_program("--version", preexec_fn=lambda: os.close(1))
    assert ran.returncode == 1
    assert "stdout: it is closed" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_names_that_stdout_cannot_hold_are_escaped(tiny, tmp_path):
    shutil.copy(tiny, tmp_path / "ü.safetensors")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ran = ran_as_a_program("weights", "fetch", tmp_path / "ü.safetensors", env=environment)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith("\\xfc.safetensors\n")


@pytest.mark.skipif(sys.platform == "win32", reason="closes descriptors as shells do")
def test_outputs_do_not_take_the_place_of_closed_streams():
    """What libraries write to stderr would be written into them."""
    program = (
        "import os, sys\n"
        "from stae_cli.cli.console import open_streams\n"
        "open_streams()\n"
        "assert os.open(os.devnull, os.O_RDONLY) > 2\n"
        "sys.stderr.write('nowhere')\n"
    )
    closing = {"preexec_fn": lambda: [os.close(number) for number in range(3)]}
    assert subprocess.run([sys.executable, "-c", program], **closing).returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals as shells send them")
@pytest.mark.parametrize("within", ["", "class A:\n  class B:\n    __set_name__ = "])
def test_an_interrupt_while_the_program_loads(tmp_path, within):
    strike = "lambda *_: signal.raise_signal(signal.SIGINT)\n"
    strike = f"{within}{strike}  b = B()" if within else f"({strike})()"
    (tmp_path / "typer.py").write_text(f"import signal\n{strike}\n")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    ran = ran_as_a_program(env={**os.environ, "PYTHONPATH": path}, preexec_fn=heed_interrupts)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "error: interrupted\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--square", "22628"], ["--square 22628", "512 megapixels", "22627"]),
        (["--square", "100000000"], ["512 megapixels"]),
        (["--batch-patches", 10**20], ["--batch-patches", "2147483647"]),
    ],
    ids=lambda each: " ".join(map(str, each)) if each[0].startswith("--") else "",
)
@pytest.mark.parametrize("command", ["encode", "roundtrip"])
def test_numbers_beyond_all_memory_are_refused(stae, tmp_path, command, options, words):
    stae(command, EXAMPLES, tmp_path / "out", *options).assert_fails(2, *words)
    assert not (tmp_path / "out").exists()


def test_a_picture_without_memory_is_a_failure_like_any(stae, tiny, tmp_path, monkeypatch):
    def full(*_arguments):
        raise MemoryError

    photos = write_photos(tmp_path / "photos")
    monkeypatch.setattr("stae_cli.images.resize._resized", full)
    ran = stae("encode", photos, tmp_path / "out", "--weights", tiny, "--json")
    assert (ran.code, ran.json["failed"]) == (3, 9)
    assert "not enough memory" in ran.json["failures"][0]["reason"]
