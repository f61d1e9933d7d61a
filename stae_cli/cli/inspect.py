"""`stae inspect`: what latent files hold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stae_cli.cli.console import print_error, print_json, print_note, print_table
from stae_cli.cli.options import AsJson
from stae_cli.cli.report import ALL_GOOD, SOME_FAILED

if TYPE_CHECKING:
    from stae_cli.files.inventory import Inventory, Item

SIZES_SHOWN = 8


def inspect(
    sources: Annotated[
        list[Path], typer.Argument(metavar="PATH", help="Latent files, or folders of them.")
    ],
    files: Annotated[bool, typer.Option("--files", help="Print a row for every file.")] = False,
    as_json: AsJson = False,
) -> int:
    """Show what latent files or folders hold, from headers alone; exits 3 if any is invalid."""
    from stae_cli.files.inventory import take_inventory

    inventory = take_inventory(sources)
    if as_json:
        print_json(_summary(inventory) | ({"files": _rows(inventory)} if files else {}))
    else:
        if files:
            _print_files(inventory)
        _print_summary(inventory)
    return SOME_FAILED if inventory.problems else ALL_GOOD


def _print_files(inventory: Inventory) -> None:
    rows = [
        (
            item.key,
            f"{item.header.info.width}x{item.header.info.height}",
            "x".join(map(str, item.header.shape)),
            item.header.dtype,
            item.header.info.weights,
            item.header.info.source,
        )
        for item in inventory.items
    ]
    print_table("files", ("file", "picture", "latent", "dtype", "weights", "source"), rows)


def _print_summary(inventory: Inventory) -> None:
    for problem in inventory.problems:
        print_error(f"{problem.key}: {problem.reason}")
    size = sum(item.size for item in inventory.items)
    print_note(
        f"{len(inventory.items)} latents, {size / 1e6:.2f} MB; "
        f"{len(inventory.problems)} invalid, {inventory.passed_over} other files"
    )
    for (name, fingerprint), count in inventory.weights.most_common():
        print_note(f"weights: {name} ({fingerprint[:12]}) in {count}")
    for what in ("architecture", "prep", "compute_dtype"):
        print_note(f"{what}: {_listed(inventory.count(what))}")
    print_note(f"stored as: {_listed(Counter(item.header.dtype for item in inventory.items))}")
    sizes = Counter({f"{w}x{h}": count for (w, h), count in inventory.sizes.items()})
    print_note(f"pictures: {_listed(sizes)}")


def _listed(counts: Counter[str]) -> str:
    shown = [f"{value} ({count})" for value, count in counts.most_common(SIZES_SHOWN)]
    if len(counts) > SIZES_SHOWN:
        shown.append(f"and {len(counts) - SIZES_SHOWN} more")
    return ", ".join(shown) or "-"


def _summary(inventory: Inventory) -> dict[str, Any]:
    return {
        "latents": len(inventory.items),
        "bytes": sum(item.size for item in inventory.items),
        "passed_over": inventory.passed_over,
        "invalid": [{"file": p.key, "reason": p.reason} for p in inventory.problems],
        "weights": [
            {"name": name, "sha256": fingerprint, "latents": count}
            for (name, fingerprint), count in inventory.weights.most_common()
        ],
        "architecture": dict(inventory.count("architecture")),
        "prep": dict(inventory.count("prep")),
        "compute_dtype": dict(inventory.count("compute_dtype")),
        "dtype": dict(Counter(item.header.dtype for item in inventory.items)),
        "pictures": [
            {"width": width, "height": height, "latents": count}
            for (width, height), count in inventory.sizes.most_common()
        ],
    }


def _rows(inventory: Inventory) -> list[dict[str, Any]]:
    return [_row(item) for item in inventory.items]


def _row(item: Item) -> dict[str, Any]:
    return {
        "file": item.key,
        "bytes": item.size,
        "shape": list(item.header.shape),
        "dtype": item.header.dtype,
        **vars(item.header.info),
    }
