"""What the terminal shows: messages and progress on stderr, data and reports on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from stae_cli.errors import StaeError

UNBOUNDED = 100_000  # columns of a terminal: what does not fit runs over


def print_error(message: str, hint: str = "") -> None:
    """`error: ...` and `hint: ...` on stderr."""
    _print_labelled("error", "bold red", message)
    if hint:
        _print_labelled("hint", "bold cyan", hint)


def print_warning(message: str) -> None:
    """`warning: ...` on stderr."""
    _print_labelled("warning", "bold yellow", message)


def print_note(message: str) -> None:
    """One line on stderr, of how a run went."""
    _console(sys.stderr).print(printable(message), markup=False, highlight=False, soft_wrap=True)


def print_help(text: str) -> None:
    """A command's help on stderr, where it was not asked for."""
    sys.stderr.write(f"{text}\n")


def print_line(text: str) -> None:
    """One line of data on stdout; raises what `_stdout` raises, like all that write there."""
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

    Where there is no room for it, its lines run over: columns of a few letters are hard to read.
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
def progress_bar(total: int | None, *, what: str, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr; yields a function that moves it on by a number of steps."""
    from tqdm import tqdm

    hidden = quiet or not sys.stderr.isatty()
    with tqdm(total=total, desc=what, unit="image", disable=hidden, file=sys.stderr) as bar:

        def advance(steps: int) -> None:
            bar.update(steps)

        yield advance


@contextmanager
def share_bar(what: str, *, quiet: bool) -> Iterator[Callable[[float, str], None]]:
    """A bar on stderr; yields a function that sets the share that is done, and words beside it."""
    from tqdm import tqdm

    hidden = quiet or not sys.stderr.isatty()
    form = "{desc}: {percentage:5.1f}%|{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=1.0, desc=what, bar_format=form, disable=hidden, file=sys.stderr) as bar:

        def show(share: float, words: str) -> None:
            bar.set_postfix_str(words, refresh=False)
            bar.update(share - bar.n)

        yield show


@contextmanager
def _stdout() -> Iterator[TextIO]:
    """Where data go; they have gone there at the end.

    Raises:
        StaeError: it is closed, or takes no more.
        BrokenPipeError: whoever reads it has seen enough; Typer ends quietly then.
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
