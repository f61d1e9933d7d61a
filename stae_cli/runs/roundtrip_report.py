"""What `roundtrip` writes beside its pictures: figures as JSON, and the page that shows all."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stae_cli.report.page import Column, Photo, Report, render
from stae_cli.runs.roundtrip_plan import METRICS_NAME, PAGE_NAME, RoundtripPlan, RoundtripTally

if TYPE_CHECKING:
    from stae_cli.codec.pixel_codec import PixelCodec
    from stae_cli.images.resize import Prep
    from stae_cli.runs.autoencoders import Autoencoder


def figures(autoencoders: Sequence[Autoencoder], tally: RoundtripTally) -> list[dict[str, Any]]:
    """Each autoencoder, with its figures over all images."""
    overall = [tally.overall(index) for index in range(len(autoencoders))]
    return [
        {**each.describe(), "overall": mean.as_json() if mean else None}
        for each, mean in zip(autoencoders, overall, strict=True)
    ]


def write_metrics(
    plan: RoundtripPlan, autoencoders: Sequence[Autoencoder], tally: RoundtripTally
) -> None:
    """Writes the figures of all images; `scores` are in the order of `autoencoders`.

    Raises:
        StaeError: DEST cannot be written to.
    """
    everything: dict[str, Any] = {
        "prep": plan.settings.prep.describe(),
        "autoencoders": figures(autoencoders, tally),
        "images": [
            {
                "source": one.key,
                "width": one.width,
                "height": one.height,
                "scores": [score.as_json() for score in one.scores],
            }
            for one in tally.scored
        ],
        "failed": [{"source": p.key, "reason": p.reason} for p in tally.problems],
    }
    with plan.destination.writing(METRICS_NAME) as path:
        text = json.dumps(everything, indent=2, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")


def write_page(
    plan: RoundtripPlan,
    autoencoders: Sequence[Autoencoder],
    codec: PixelCodec,
    tally: RoundtripTally,
    *,
    command: str,
) -> None:
    """Writes the page, which shows the pictures beside it.

    Raises:
        StaeError: DEST cannot be written to.
    """
    columns = [
        Column(each.name, suffix, _latents(each), each.parameters, each.facts())
        for each, (suffix, _) in zip(autoencoders, plan.settings.suffixes, strict=True)
    ]
    photos = [Photo(one.key, one.width, one.height, one.scores) for one in tally.scored]
    failures = [(problem.key, problem.reason) for problem in tally.problems]
    report = Report(columns, photos, _facts(plan, codec, tally, command), failures)
    with plan.destination.writing(PAGE_NAME) as path:
        path.write_text(render(report), encoding="utf-8")


def command_line(arguments: Sequence[str]) -> str:
    """The command as one would type it, without what a URL may hold of passwords and keys."""
    return shlex.join(["stae", *(_without_secrets(each) for each in arguments)])


def _without_secrets(argument: str) -> str:
    if "://" not in argument:
        return argument
    return re.sub(r"://[^/@]*@", "://", argument.partition("?")[0])


def _latents(autoencoder: Autoencoder) -> str:
    """Such as `16 channels at 1/8`, and how many numbers a pixel's three become."""
    side = autoencoder.downsample
    share = autoencoder.channels / side**2
    return f"{autoencoder.channels} channels at 1/{side} ({share:.3g} numbers a pixel)"


def _facts(
    plan: RoundtripPlan, codec: PixelCodec, tally: RoundtripTally, command: str
) -> list[tuple[str, str]]:
    facts = [("command", command)] if command else []
    facts.append(("made", time.strftime("%Y-%m-%d %H:%M")))
    if tally.scored:
        facts.append(("sizes", _sizes([(one.width, one.height) for one in tally.scored])))
    facts.append(("prepared", _prepared(plan.settings.prep)))
    facts.append(("device", str(codec.device)))
    facts.append(("time", f"{tally.seconds:.1f} s for {tally.pixels / 1e6:.1f} megapixels"))
    return facts


def _prepared(prep: Prep) -> str:
    changed = json.loads(prep.describe())
    return ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in changed.items()) or "at full size"


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    smallest = min(sizes, key=lambda size: size[0] * size[1])
    largest = max(sizes, key=lambda size: size[0] * size[1])
    megapixels = sum(width * height for width, height in sizes) / 1e6
    ends = f"{smallest[0]}x{smallest[1]}"
    if largest != smallest:
        ends += f" to {largest[0]}x{largest[1]}"
    return f"{len(sizes)} pictures of {ends}, {megapixels:.1f} megapixels"
