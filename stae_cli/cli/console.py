"""What the terminal shows: messages and progress on stderr, data and reports on stdout."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from stae_cli.errors import StaeError

UNBOUNDED = 100_000  # columns: longer lines are wrapped by the terminal, not by us
LAST_STREAM = 2  # stderr
CLEAR_LINE = "\r\x1b[K"  # of a terminal, where another process may have drawn its bar


def print_error(message: str, hint: str = "") -> None:
    """`error: ...` and `hint: ...` on stderr."""
    _print_labelled("error", "bold red", message)
    if hint:
        _print_labelled("hint", "bold cyan", hint)


def print_warning(message: str) -> None:
    """`warning: ...` on stderr."""
    _print_labelled("warning", "bold yellow", message)


def print_note(message: str) -> None:
    """One line on stderr about how a run goes."""
    _console(sys.stderr).print(printable(message), markup=False, highlight=False, soft_wrap=True)


def print_help(text: str) -> None:
    """A command's help on stderr, for a command line that did not ask for it."""
    sys.stderr.write(f"{text}\n")


def print_line(text: str) -> None:
    """One line of data on stdout; raises what `_stdout` raises, like all functions that use it."""
    with _stdout() as stdout:
        stdout.write(f"{text}\n")


def print_fact(text: str) -> None:
    """One line of a report that was asked for, on stdout."""
    print_line(printable(text))


def print_json(value: Any) -> None:
    """The one JSON object of `--json`, on stdout."""
    print_line(json.dumps(value, ensure_ascii=True, allow_nan=False, indent=2))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; the first column is text, the others are aligned right.

    In a narrow terminal its lines wrap as a whole: columns of a few letters are hard to read.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    with _stdout() as stdout:
        _console(stdout).print(table)


def printable(text: str) -> str:
    """The text with control characters and lone surrogates escaped, so that a name is one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def progress_bar(
    total: int | None, *, what: str, quiet: bool, unit: str = "image"
) -> Iterator[Callable[[int], None]]:
    """A bar on stderr; yields a function that advances it by a number of steps."""
    from tqdm import tqdm

    hidden = quiet or not sys.stderr.isatty()
    with tqdm(
        total=total,
        desc=what,
        unit=unit,
        unit_scale=unit == "B",
        disable=hidden,
        file=sys.stderr,
    ) as bar:

        def advance(steps: int) -> None:
            bar.update(steps)

        yield advance


@contextmanager
def share_bar(what: str, *, quiet: bool) -> Iterator[Callable[[float, str], None]]:
    """A bar on stderr; yields a function that sets the finished share and the text beside it."""
    from tqdm import tqdm

    hidden = quiet or not sys.stderr.isatty()
    form = "{desc}: {percentage:5.1f}%|{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=1.0, desc=what, bar_format=form, disable=hidden, file=sys.stderr) as bar:

        def show(share: float, text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update(share - bar.n)

        yield show


@contextmanager
def _stdout() -> Iterator[TextIO]:
    """The stream for data, flushed at the end.

    Raises:
        StaeError: it is closed, or cannot be written to.
        BrokenPipeError: its reader has closed it; Typer then exits quietly.
    """
    if sys.stdout is None:
        raise StaeError("cannot write to stdout: it is closed", "send it to a file or a pipe")
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StaeError(f"cannot write to stdout: {error.strerror}", "send it elsewhere") from error


def _print_labelled(label: str, style: str, message: str) -> None:
    from rich.text import Text

    text = Text.assemble((f"{label}: ", style), printable(message))
    _console(sys.stderr).print(text, soft_wrap=True, highlight=False)


def _console(stream: TextIO | None) -> Any:
    from rich.console import Console

    return Console(file=stream, width=UNBOUNDED)


class _AboveBar:
    """Stderr for lines of the log: a progress bar is drawn again below each of them."""

    def write(self, text: str) -> None:
        from tqdm import tqdm

        terminal = sys.stderr.isatty() and os.name != "nt"
        tqdm.write(CLEAR_LINE * terminal + text, file=sys.stderr, end="")

    def flush(self) -> None:
        sys.stderr.flush()


def show_log() -> None:
    """Writes what stae logs to stderr, as `info: ...`; to be called in each process of a run."""
    import logging  # here, like other libraries: `stae --help` is there sooner

    def prepare(record: logging.LogRecord) -> bool:
        record.label = record.levelname.lower()
        record.msg, record.args = printable(record.getMessage()), ()
        return True

    handler = logging.StreamHandler(_AboveBar())
    handler.addFilter(prepare)
    handler.setFormatter(logging.Formatter("%(label)s: %(message)s"))
    log = logging.getLogger("stae_cli")
    log.handlers[:] = [handler]
    log.setLevel(logging.DEBUG)


def hide_log() -> None:
    """Undoes `show_log`."""
    import logging

    log = logging.getLogger("stae_cli")
    log.handlers.clear()
    log.setLevel(logging.NOTSET)


def log_info(message: str) -> None:
    """Logs what the command line itself found or chose."""
    import logging

    logging.getLogger("stae_cli.cli").info("%s", message)


def open_streams() -> None:
    """Opens the null device in place of standard streams that the caller closed.

    Otherwise the next files to be opened would get their numbers, and what libraries print there.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= LAST_STREAM:
        pass
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = os.fdopen(LAST_STREAM, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):  # its encoding may not cover every file name
        sys.stdout.reconfigure(errors="backslashreplace")


def leave_stdout() -> None:
    """Drops what stdout did not take: it has been reported, and Python would try it again."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
