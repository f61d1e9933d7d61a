"""The page: what it shows, and how a template makes one file of it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stae_cli._version import __version__
from stae_cli.metrics import Overall, Score, finite, overall
from stae_cli.report.histogram import histogram

ORIGINAL = "original.png"  # suffixes of the files of each picture
THUMBNAIL = "thumbnail.jpg"
GAIN = 8  # of the difference
FAILURES_SHOWN = 200
ESCAPED = ("Cc", "Cs")  # control characters, and halves of characters in names that are not UTF-8

Facts = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Column:
    """One autoencoder: its reconstruction of a picture is the file NAME.`suffix`."""

    name: str
    suffix: str
    latents: str
    parameters: int
    facts: Facts = ()


@dataclass(frozen=True)
class Photo:
    """One picture: its files are NAME.SUFFIX beside the page. It has a score of each column."""

    name: str
    width: int
    height: int
    scores: Sequence[Score]


@dataclass(frozen=True)
class Report:
    """All that the page shows. Names of pictures are UTF-8; `failures` are names with reasons."""

    columns: Sequence[Column]
    photos: Sequence[Photo]
    facts: Facts
    failures: Sequence[tuple[str, str]] = field(default=())


def render(report: Report) -> str:
    """The page as HTML that needs no network: pictures are linked, all else is in it.

    Names are escaped wherever they stand; those that are not UTF-8 are shown with escapes.
    """
    environment = Environment(
        loader=PackageLoader("stae_cli.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    count = len(report.photos)
    return environment.get_template("report.html.jinja").render(
        version=__version__,
        title=f"Roundtrip of {count} {'picture' if count == 1 else 'pictures'}",
        count=count,
        columns=_columns(report),
        identical=_identical(report),
        plots=_plots(report),
        facts=[(name, shown(text)) for name, text in report.facts],
        failures=[(shown(name), shown(reason)) for name, reason in report.failures],
        failures_shown=FAILURES_SHOWN,
        gain=GAIN,
        data=_data(report),
        **_assets(),
    )


def shown(text: str) -> str:
    """The text with what no page can hold, or show, escaped."""
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ESCAPED else c
        for c in text
    )


def _assets() -> dict[str, Markup]:
    """Styles, scripts and licences; they are ours or of libraries, so they are not escaped."""
    room = files("stae_cli.report")
    slider, panzoom = room / "vendor/img-comparison-slider", room / "vendor/panzoom"
    licences = {
        "slider_licence": slider / "LICENSE",
        "panzoom_licence": panzoom / "LICENSE",
    }
    texts = {name: path.read_text(encoding="utf-8").strip() for name, path in licences.items()}
    scripts = {
        "style": room / "report.css",
        "script": room / "report.js",
        "slider_style": slider / "img-comparison-slider.css",
        "slider_script": slider / "img-comparison-slider.js",
        "panzoom_script": panzoom / "panzoom.min.js",
    }
    texts |= {name: path.read_text(encoding="utf-8").strip() for name, path in scripts.items()}
    return {name: Markup(text) for name, text in texts.items()}  # noqa: S704


def _columns(report: Report) -> list[dict[str, Any]]:
    """The rows of the table of means."""
    scores = [[photo.scores[index] for photo in report.photos] for index in range(_width(report))]
    means = [overall(each) if each else None for each in scores]
    best_psnr = max((mean.psnr for mean in means if mean), default=None)
    best_ssim = max((mean.ssim for mean in means if mean and mean.ssim is not None), default=None)
    several = len(means) > 1
    return [
        {
            "name": shown(column.name),
            "latents": column.latents,
            "parameters": f"{column.parameters / 1e6:.1f} M",
            "facts": [(name, shown(text)) for name, text in column.facts],
            "best_psnr": several and mean is not None and mean.psnr == best_psnr,
            "best_ssim": several and mean is not None and mean.ssim == best_ssim,
            "wins_psnr": _wins(report, index, lambda score: -score.mse),
            "wins_ssim": _wins(report, index, lambda score: score.ssim),
            **_in_words(mean),
        }
        for index, (column, mean) in enumerate(zip(report.columns, means, strict=True))
    ]


def _width(report: Report) -> int:
    return len(report.columns)


def _in_words(mean: Overall | None) -> dict[str, str]:
    if mean is None:
        return {"psnr": "-", "ssim": "-", "mse": "-"}
    return {
        "psnr": "identical" if finite(mean.psnr) is None else f"{mean.psnr:.2f} dB",
        "ssim": "-" if mean.ssim is None else f"{mean.ssim:.4f}",
        "mse": f"{mean.mse:.6f}",
    }


def _wins(report: Report, index: int, figure: Any) -> int:
    """In how many pictures one column is better than each other one."""
    wins = 0
    for photo in report.photos:
        figures = [figure(score) for score in photo.scores]
        if None not in figures:
            own = figures.pop(index)
            wins += all(own > other for other in figures)
    return wins


def _identical(report: Report) -> str:
    counts = [
        sum(photo.scores[i].mse == 0 for photo in report.photos) for i in range(_width(report))
    ]
    if not any(counts):
        return ""
    named = [
        f"{count} by {shown(column.name)}"
        for column, count in zip(report.columns, counts, strict=True)
        if count
    ]
    return (
        f"Pictures that came back identical ({', '.join(named)}) have no PSNR and are not in its "
        "mean."
    )


def _plots(report: Report) -> list[Any]:
    def values(figure: Any) -> list[tuple[str, list[float]]]:
        return [
            (
                shown(column.name),
                [value for p in report.photos if (value := figure(p.scores[i])) is not None],
            )
            for i, column in enumerate(report.columns)
        ]

    found = (
        histogram(
            "PSNR", "in dB, and how many pictures have it", values(lambda s: s.psnr), digits=2
        ),
        histogram("SSIM", "and how many pictures have it", values(lambda s: s.ssim), digits=4),
    )
    return [plot for plot in found if plot is not None]


def _data(report: Report) -> dict[str, Any]:
    """What the script needs, small: a page of thousands of pictures is loaded at once."""
    return {
        "gain": GAIN,
        "columns": [{"name": shown(c.name), "suffix": quote(c.suffix)} for c in report.columns],
        "photos": [
            [
                photo.name,
                photo.width,
                photo.height,
                [
                    [float(f"{s.mse:.6g}"), None if s.ssim is None else round(s.ssim, 6)]
                    for s in photo.scores
                ],
            ]
            for photo in report.photos
        ],
    }
