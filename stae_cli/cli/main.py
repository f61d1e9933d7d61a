"""The Typer app, and the one place that turns errors into messages and exit codes."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from types import FrameType
from typing import Annotated

import typer

from stae_cli._version import __version__
from stae_cli.cli.bench import bench
from stae_cli.cli.console import (
    hide_log,
    leave_stdout,
    open_streams,
    print_error,
    print_help,
    print_line,
)
from stae_cli.cli.decode import decode
from stae_cli.cli.encode import encode
from stae_cli.cli.export import export
from stae_cli.cli.flops import flops
from stae_cli.cli.inspect import inspect
from stae_cli.cli.options import SectionedCommand
from stae_cli.cli.push import push
from stae_cli.cli.roundtrip import roundtrip
from stae_cli.cli.stats import stats
from stae_cli.cli.train import train
from stae_cli.cli.verify import verify
from stae_cli.cli.weights import weights
from stae_cli.cores import usable_cores, visible_cores
from stae_cli.errors import StaeError, UsageError

FATAL, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143
RESUMING = ("encode", "decode", "train", "push")
ALONE = ("encode", "decode", "roundtrip", "verify")  # whose threads each compute alone


class TerminationError(BaseException):
    """SIGTERM arrived; unwinds like KeyboardInterrupt, so that nothing is left half-written."""


app = typer.Typer(
    name="stae",
    help="Images to latents and back with StupidAE, a tiny and very fast autoencoder.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help starts a third sooner
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
sectioned = partial(app.command, cls=SectionedCommand)
sectioned("encode", short_help="Images (files, folders) to latents.")(encode)
sectioned("decode", short_help="Latents (files, folders) to pictures.")(decode)
app.command("export", short_help="Latents to what trainers read.")(export)
sectioned("roundtrip", short_help="Reconstructions, comparison pictures, metrics.")(roundtrip)
sectioned("train")(train)
app.add_typer(bench, name="bench", short_help="Speed, memory and share of the machine's limit.")
app.command("flops")(flops)
app.command("inspect", short_help="What latents hold, from their headers alone.")(inspect)
app.command("verify", short_help="Whether latents are whole, consistent and up to date.")(verify)
app.command("stats", short_help="Mean, deviation, scale and correlation of latents.")(stats)
app.command("push", short_help="Latents to a dataset on the Hugging Face hub.")(push)
app.add_typer(weights, name="weights")


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"stae {__version__}")
        raise typer.Exit


@app.callback()
def stae(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (without the program's name) and returns its exit code.

    0 all good; 1 fatal; 2 usage; 3 some inputs failed; 130 SIGINT; 143 SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    found: dict[str, object] = {"arguments": arguments}  # and what callbacks of options find
    try:
        with warnings.catch_warnings():
            # Pillow's opinions on metadata: what matters is an error, and is listed.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _refuse_empty(arguments)
            code = app(args=arguments, prog_name="stae", standalone_mode=False, obj=found)
    except typer.TyperException as error:
        _print_misuse(error)
        return error.exit_code
    except StaeError as error:
        print_error(error.message, error.hint)
        return USAGE if isinstance(error, UsageError) else FATAL
    except OSError as error:  # of stdout, to which Typer itself writes the help
        print_error(str(error))
        return FATAL
    except TerminationError:
        print_error("terminated", _how_to_resume(arguments))
        return TERMINATED
    except MemoryError:
        hint = "raise the limit, or try a smaller `--batch-patches` and fewer `--workers`"
        print_error("there is not enough memory for this process", hint)
        return FATAL
    except Exception as error:  # noqa: BLE001  # the one place that may: a bug, here or elsewhere
        return _print_unexpected(error, verbose="verbose" in found)
    finally:
        if "verbose" in found:
            hide_log()
    if code == INTERRUPTED:  # Typer turns KeyboardInterrupt into this
        print_error("interrupted", _how_to_resume(arguments))
    return int(code or 0)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """An empty path would be the working directory: with `$OUT` unset, latents would go there."""
    for argument in arguments:
        name, _, value = argument.partition("=")
        if not argument or (name.startswith("--") and argument.endswith("=") and not value):
            raise UsageError(
                f"`{argument}` has no value" if argument else "an argument is empty",
                "is a variable of the shell unset?",
            )


def _print_unexpected(error: Exception, *, verbose: bool) -> int:
    """One line, or with `--verbose` the traceback before it."""
    if error.__cause__ is not None and not isinstance(error.__cause__, Exception):
        raise error  # a KeyboardInterrupt, wrapped by Python before 3.12 (see `__main__`)
    hint = "run the same command with `--verbose`, and report what it prints"
    if verbose:
        traceback.print_exception(error)
        hint = "please report it, with the traceback above"
    text = str(error).strip().partition("\n")[0]
    print_error(f"unexpected {type(error).__name__}" + f": {text}" * bool(text), hint)
    return FATAL


def _print_misuse(error: typer.TyperException) -> None:
    """What is wrong with the command line; only the help if it names no command."""
    context: typer.Context | None = getattr(error, "ctx", None)
    message = error.format_message().replace("Value error, ", "")
    if context is None:
        print_error(message, "see `stae --help`")
    elif message == context.get_help():
        print_help(message)
    else:
        path = context.command_path
        if _misses_a_place(error, context):
            message = f"`{path}` needs SOURCE and DEST"
        print_error(message, f"see `{path} --help`")


def _misses_a_place(error: typer.TyperException, context: typer.Context) -> bool:
    """Whether SOURCE or DEST is missing: one alone is taken for DEST."""
    names = {parameter.name for parameter in context.command.params}
    missing = getattr(error, "param", None)
    return {"sources", "dest"} <= names and missing is not None and missing.name == "sources"


def _how_to_resume(arguments: Sequence[str]) -> str:
    """The hint after an interruption; empty for commands that cannot resume."""
    command, replaces = next(iter(arguments), ""), "--overwrite" in arguments
    if command not in RESUMING or (replaces and command != "train"):
        return ""
    return "run the same command again to continue where it stopped"


def run() -> None:
    """The `stae` program, after loading."""
    signal.signal(signal.SIGTERM, _terminate)
    _set_threads(sys.argv[1:2])
    open_streams()
    code = main()
    leave_stdout()
    sys.exit(code)


def _set_threads(command: Sequence[str]) -> None:
    """Sets what torch's OpenMP reads when it is loaded, where the user has not.

    A container may grant less than the cores that it shows, which torch does not look at; else it
    knows better, as it counts those that share a physical core once. Threads that wait for others
    let go of their core, which costs nothing where each computes alone, and helps beside other
    programs; the other commands run functions of torch in which it costs a lot.
    """
    if (cores := usable_cores()) < visible_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    if set(command) & set(ALONE):
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise TerminationError
