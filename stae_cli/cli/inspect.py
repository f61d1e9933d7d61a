"""`stae inspect`: what latent files hold."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stae_cli.cli import options as opt
from stae_cli.cli.console import print_error, print_fact, print_json, print_table, progress_bar
from stae_cli.cli.report import ALL_GOOD, SOME_FAILED

if TYPE_CHECKING:
    from stae_cli.latents.format import StoredLatent
    from stae_cli.latents.listing import LatentListing
    from stae_cli.verify.preview import Previews

SIZES_SHOWN = 8
COUNTED = ("architecture", "prep", "compute_dtype")  # fields whose values are listed


def inspect(
    sources: opt.LatentSources,
    files: Annotated[bool, typer.Option("--files", help="Print a row for every file.")] = False,
    preview: Annotated[
        str | None,
        typer.Option(
            "--preview",
            metavar="DEST",
            help="Draw all latents without the network, as PNGs in this folder, and a contact "
            "sheet of them; reads them twice.",
            show_default=False,
        ),
    ] = None,
    as_json: opt.AsJson = False,
    verbose: opt.Verbose = False,
) -> int:
    """Show what latent files or folders hold, from headers alone; exits 3 if any is invalid."""
    from stae_cli.latents.listing import list_latents

    inventory = list_latents(sources, preview)
    previews = None if preview is None else _previews(sources, inventory, preview)
    if as_json:
        rows = {"files": [_row(stored) for stored in inventory.latents]} if files else {}
        print_json(_summary(inventory) | rows | (_drawn(previews) if previews else {}))
    else:
        if files:
            _print_files(inventory)
        _print_summary(inventory)
        if previews:
            _print_previews(previews)
    failed = inventory.problems or (previews and previews.problems)
    return SOME_FAILED if failed else ALL_GOOD


def _previews(sources: list[str], inventory: LatentListing, dest: str) -> Previews:
    from stae_cli.verify.preview import plan_previews, write_previews

    plan = plan_previews(sources, inventory, dest)
    with progress_bar(plan.total, what="preview", quiet=False, unit="latent") as advance:
        return write_previews(plan, advance=advance)


def _print_previews(previews: Previews) -> None:
    for problem in previews.problems:
        print_error(f"{problem.key}: {problem.reason}")
    count = len(previews.names)
    print_fact(f"previews: {count} in {previews.folder}; {len(previews.problems)} not drawn")
    if previews.sheet:
        part = f"the first {previews.shown} of " if previews.shown < count else ""
        print_fact(f"contact sheet: {previews.sheet} shows {part}{count}")


def _drawn(previews: Previews) -> dict[str, Any]:
    return {
        "preview": {
            "folder": previews.folder,
            "pictures": len(previews.names),
            "contact_sheet": {"file": previews.sheet, "pictures": previews.shown},
            "invalid": [{"file": p.key, "reason": p.reason} for p in previews.problems],
        }
    }


def _print_files(inventory: LatentListing) -> None:
    rows = [
        (
            stored.key,
            stored.file.key,
            f"{stored.info.width}x{stored.info.height}",
            "x".join(map(str, stored.shape)),
            stored.dtype,
            stored.info.weights,
            stored.info.source,
        )
        for stored in inventory.latents
    ]
    print_table("latents", ("key", "file", "picture", "latent", "dtype", "weights", "source"), rows)


def _print_summary(inventory: LatentListing) -> None:
    for problem in inventory.problems:
        print_error(f"{problem.key}: {problem.reason}")
    files = inventory.files
    print_fact(
        f"{len(inventory.latents)} latents in {len(files)} files, "
        f"{sum(files.values()) / 1e6:.2f} MB; "
        f"{len(inventory.problems)} invalid, {inventory.passed_over.total()} other files"
    )
    for (name, fingerprint), count in inventory.weights.most_common():
        print_fact(f"weights: {name} ({fingerprint[:12]}) in {count}")
    for what in COUNTED:
        print_fact(f"{what}: {_listed(inventory.count(what))}")
    print_fact(f"stored as: {_listed(Counter(stored.dtype for stored in inventory.latents))}")
    sizes = Counter({f"{w}x{h}": count for (w, h), count in inventory.sizes.items()})
    print_fact(f"pictures: {_listed(sizes)}")
    for what, count in _beside(inventory).items():
        if count:
            print_fact(f"{what}: {count}")


def _beside(inventory: LatentListing) -> dict[str, int]:
    """How many latents have more than the picture's latent."""
    infos = [stored.info for stored in inventory.latents]
    return {
        "flips": sum(bool(info.flip_crc32) for info in infos),
        "captions": sum(bool(info.caption) for info in infos),
        "labels": sum(info.label >= 0 for info in infos),
    }


def _listed(counts: Counter[str]) -> str:
    shown = [f"{value} ({count})" for value, count in counts.most_common(SIZES_SHOWN)]
    if len(counts) > SIZES_SHOWN:
        shown.append(f"and {len(counts) - SIZES_SHOWN} more")
    return ", ".join(shown) or "-"


def _summary(inventory: LatentListing) -> dict[str, Any]:
    return {
        "latents": len(inventory.latents),
        "stored_in": len(inventory.files),
        "bytes": sum(inventory.files.values()),
        "passed_over": inventory.passed_over.total(),
        "passed_over_by_suffix": dict(inventory.passed_over.most_common()),
        "invalid": [{"file": p.key, "reason": p.reason} for p in inventory.problems],
        "weights": [
            {"name": name, "sha256": fingerprint, "latents": count}
            for (name, fingerprint), count in inventory.weights.most_common()
        ],
        **{what: dict(inventory.count(what)) for what in COUNTED},
        "dtype": dict(Counter(stored.dtype for stored in inventory.latents)),
        "pictures": [
            {"width": width, "height": height, "latents": count}
            for (width, height), count in inventory.sizes.most_common()
        ],
        **_beside(inventory),
    }


def _row(stored: StoredLatent) -> dict[str, Any]:
    return {
        "key": stored.key,
        "file": stored.file.key,
        "bytes": stored.whole_size,
        "shape": list(stored.shape),
        "dtype": stored.dtype,
        **stored.info.to_strings(),
    }
