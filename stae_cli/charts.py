"""Charts with matplotlib: one style for all of them, and files that appear whole.

Figures are made without pyplot, so no display, no window and no state of a caller is involved.
"""

from __future__ import annotations

import errno
import os
import secrets
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stae_cli.errors import StaeError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")

PAPER, INK, FAINT, GRID = "#ffffff", "#1c2430", "#667085", "#e4e7ec"
BLUE, GREY = "#2f6fde", "#9aa7b8"
TRACK = "#f0f2f5"  # behind bars
OTHERS = (GREY, "#e0a458", "#7fb5a6", "#c48bb4", "#a58e6f", "#8fb0e0", "#cf7c6b")
DIVERGING = ("#b4532a", "#e0a458", PAPER, "#7aa5ee", "#1d4fae")  # from -1 over 0 to 1

# Sizes are in points, on figures about ten inches wide: legible when shown at half size.
TITLE, SUBTITLE, NOTE, SMALL = 16, 11, 10, 10
MARGIN = 0.3  # inches
LETTER = 0.078  # inches: the usual width of a letter of a subtitle or note
LINE = 0.21  # inches from one line of these to the next
GAP = 0.08  # inches around each panel

STYLE = {
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,  # names of files may hold dollar signs
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "xtick.color": GRID,
    "xtick.labelcolor": FAINT,
    "ytick.color": GRID,
    "ytick.labelcolor": FAINT,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "savefig.dpi": 200,
    # Text stays text: it can be searched, copied and read aloud, and files are a third the size.
    "svg.fonttype": "none",
    "svg.hashsalt": "stae",  # else ids, and so files, would differ from run to run
}

_style_lock = threading.Lock()  # matplotlib has one set of settings for all threads


def check_target(path: Path) -> None:
    """Checks that a chart can be drawn to a path, before the work that it shows is done.

    Raises:
        UsageError: it does not end in .png or .svg, is a folder, or its folder is missing.
        StaeError: matplotlib is missing, or the folder cannot be written to.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"`{path}` does not end in .png or .svg", "name such a file")
    if path.is_dir():
        raise UsageError(f"`{path}` is a folder", "name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"no folder `{path.parent}` for `{path.name}`", "create it first")
    _require()
    with _failures(path, "give another file to `--plot`"):
        probe = _beside(path)
        probe.touch(exist_ok=False)
        probe.unlink()


def obstacle() -> StaeError | None:
    """Why no chart can be drawn here; None if charts can be."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return StaeError("charts need matplotlib", "run `pip install 'stae[plot]'`")
    except ValueError as error:  # it reads this variable when it is imported
        return StaeError(f"matplotlib does not load: {error}", "correct or unset `MPLBACKEND`")
    return None


def write(path: Path, draw: Callable[[], Figure], *, hint: str) -> None:
    """Writes the figure that `draw` makes as PNG or SVG, by the path's suffix.

    `draw` runs in the style of all charts. The same figure gives the same bytes.

    Raises:
        StaeError: matplotlib is missing, or the file cannot be written; `hint` is for the latter.
    """
    _require()
    kind = path.suffix.lower().removeprefix(".")
    # Without these, files would name a date and a version.
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    held = BytesIO()
    with _styled():
        draw().savefig(held, format=kind, metadata=metadata)
    with _failures(path, hint):
        _replace(path, held.getvalue())


def new_figure(
    width: float, height: float, *, title: str, subtitle: str = "", note: str = ""
) -> Figure:
    """A figure with a title and a subtitle above its panels, and a note below them.

    Args:
        width: of the figure, in inches.
        height: of the panels with their labels, in inches: the texts are added to it.
        title: one line, in a large font.
        subtitle: in a faint one; it takes as many lines as it needs.
        note: the same.
    """
    from matplotlib.figure import Figure

    letters = int((width - 2 * MARGIN) / LETTER)
    above, below = textwrap.wrap(subtitle, letters), textwrap.wrap(note, letters)
    top = 0.65 + LINE * len(above) + 0.1
    bottom = LINE * len(below) + (0.35 if below else 0.2)
    whole = top + height + bottom
    figure = Figure(figsize=(width, whole), layout="constrained")
    engine = figure.get_layout_engine()
    assert engine is not None
    left, inner = MARGIN / width, 1 - 2 * MARGIN / width
    rect = left, bottom / whole, inner, height / whole
    engine.set(rect=rect, w_pad=GAP, h_pad=GAP)  # type: ignore[call-arg]

    faint: dict[str, Any] = {"color": FAINT, "linespacing": 1.4}
    for down, lines, style in (
        (0.3, [title], {"size": TITLE, "weight": "bold"}),
        (0.65, above, {"size": SUBTITLE, **faint}),
        (top + height + 0.15, below, {"size": NOTE, **faint}),
    ):
        figure.text(left, 1 - down / whole, "\n".join(lines), va="top", in_layout=False, **style)
    return figure


def label_logarithmic(axes: Axes, *, ticks: Sequence[float]) -> None:
    """Gives a panel logarithmic axes, x labelled at `ticks` and y at 1, 3, 10 and so on."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    axes.set(xscale="log", yscale="log")
    for axis, locator in ((axes.xaxis, FixedLocator(ticks)), (axes.yaxis, LogLocator(subs=(1, 3)))):
        axis.set_major_locator(locator)
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    axes.grid(axis="y")


def _number(value: float) -> str:
    """Thousands are separated in large numbers only."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:g}"


def _require() -> None:
    if error := obstacle():
        raise error


@contextmanager
def _styled() -> Iterator[None]:
    """Applies the style over matplotlib's own defaults, whatever a caller or matplotlibrc sets."""
    import matplotlib

    settings: Any = {**matplotlib.rcParamsDefault, **STYLE}  # typed by the names that exist
    settings.pop("backend")  # setting it would choose one for the caller's windows
    with _style_lock, matplotlib.rc_context(settings), warnings.catch_warnings():
        # The font lacks Chinese, for example; such a name is drawn with boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def _replace(path: Path, data: bytes) -> None:
    temporary = _beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # after a system crash the name could exist without data
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A name that runs know as temporary, and remove a day after a crash."""
    return path.with_name(f".stae-chart-{os.getpid()}-{secrets.token_hex(4)}.tmp")


@contextmanager
def _failures(path: Path, hint: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StaeError(
            f"cannot write `{path}`: {error.strerror or error}",
            "free some disk space" if full else hint,
        ) from error
