"""`stae verify`: whether stored latents can be trusted."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stae_cli.cli import options as opt
from stae_cli.cli.console import (
    print_error,
    print_fact,
    print_json,
    print_note,
    print_table,
    progress_bar,
)
from stae_cli.cli.engine import local_codec
from stae_cli.cli.lists import FromList, listed_inputs
from stae_cli.cli.report import ALL_GOOD, SOME_FAILED

if TYPE_CHECKING:
    from stae_cli.codec.pixel_codec import PixelCodec
    from stae_cli.verify.findings import Kind
    from stae_cli.verify.verify import Verification

SHOWN = 20  # findings of each kind; --json has all
REMEDIES: dict[Kind, str] = {
    "record": "give the DEST of a `stae encode`; the same command writes the record again",
    "damaged": "run the same `stae encode` again with `--check`",
    "foreign": "move them: they are not latents that this version of stae wrote or can read",
    "mixed": "remove them, or encode everything again with `stae encode --overwrite`",
    "misnamed": "remove them and run the same `stae encode` again",
    "duplicate": "remove the ones that do not belong there",
    "missing": "run the same `stae encode` again",
    "stale": "run the same `stae encode` again",
    "orphaned": "if their sources are gone for good, run the same `stae encode` with `--prune`",
    "unreadable": "check these sources and their permissions",
    "failed": "fix or remove these sources, and run the same `stae encode` again",
    "temporary": "wait for runs in progress; the next `stae encode` removes what others left",
    "part": "run these parts again, or the same `stae encode` as one process: it resumes",
    "manifest": "run the same `stae encode` again: it rewrites the manifest",
    "differs": "check versions and settings; if they are the same, remove them and encode again",
}


def verify(
    dest: Annotated[str, typer.Argument(metavar="DEST", help="What `stae encode` wrote.")],
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="SOURCE",
            help="Compare with this source too; repeat it for each SOURCE of the encode.",
        ),
    ] = None,
    compare: Annotated[
        Literal["time", "content"],
        typer.Option(
            "--compare",
            help="How sources are compared: size and time, or content, which reads them.",
        ),
    ] = "time",
    from_list: FromList = None,
    reencode: Annotated[
        int,
        typer.Option(
            "--reencode", min=0, metavar="N", help="Encode N random sources again, and compare."
        ),
    ] = 0,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of the choice that --reencode makes.")
    ] = 0,
    weights: opt.RecordedWeights = None,
    device: opt.Device = "auto",
    dtype: opt.ComputeDtype = "auto",
    workers: opt.Workers = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> int:
    """Check that latents are whole, finite and consistent, and match their sources.

    Exits 3 if anything is wrong.
    """
    from stae_cli.verify.verify import compare_sample, plan_verify
    from stae_cli.verify.verify import verify as run

    device = opt.parse_device(device)
    plan = plan_verify(
        dest,
        against or [],
        listed=listed_inputs(from_list),
        sample=reencode,
        seed=seed,
        workers=workers,
        compare=compare,
    )
    with progress_bar(None, what="verify", quiet=quiet) as advance:
        found = run(plan, advance=advance)
    if found.sample:
        codec = _codec(found, weights, device, dtype)
        with progress_bar(len(found.sample), what="encode again", quiet=quiet) as advance:
            compare_sample(found, codec, workers=workers, advance=advance)
    _print_findings(found)
    if as_json:
        print_json(_summary(found))
    elif not quiet:
        _print_summary(found)
    return SOME_FAILED if found.findings else ALL_GOOD


def _codec(found: Verification, weights: str | None, device: str, dtype: opt.Dtype) -> PixelCodec:
    """A codec with the checkpoint that made the latents."""
    from stae_cli.checkpoints.checkpoint import find_by_fingerprint

    made_with = found.made_with
    assert made_with is not None  # there is a sample of latents
    load = partial(
        find_by_fingerprint,
        made_with.weights_sha256,
        name=made_with.weights,
        architecture=made_with.architecture,
        asked=weights,
    )
    return local_codec(load, device, dtype)[0]


def _print_findings(found: Verification) -> None:
    for kind, count in found.counts.items():
        shown = [finding for finding in found.findings if finding.kind == kind][:SHOWN]
        for finding in shown:
            print_error(f"{kind}: {finding.key}: {finding.reason}")
        if count > SHOWN:
            print_note(f"and {count - SHOWN} more that are {kind} (--json lists all)")


def _print_summary(found: Verification) -> None:
    if found.findings:
        rows = [(kind, str(count)) for kind, count in found.counts.items()]
        print_table("what is wrong", ("kind", "count"), rows)
        for kind in found.counts:
            print_fact(f"{kind}: {REMEDIES[kind]}")
    checked = f"{found.latents} latents in {found.files} files, {found.size / 1e6:.2f} MB"
    if found.sources is not None:
        checked += f", against {found.sources} sources"
    if found.reencoded:
        equal = sum(each.equal for each in found.reencoded)
        largest = max(each.difference for each in found.reencoded)
        print_fact(
            f"encoded {len(found.reencoded)} again: {equal} with the same bytes, "
            f"largest difference {largest:.4g}"
        )
    print_fact(f"{checked}: {f'{len(found.findings)} findings' if found.findings else 'all good'}")


def _summary(found: Verification) -> dict[str, Any]:
    return {
        "good": not found.findings,
        "dest": found.dest,
        "latents": found.latents,
        "files": found.files,
        "bytes": found.size,
        "sources": found.sources,
        "made_with": found.made_with._asdict() if found.made_with else None,
        "reencoded": [asdict(each) for each in found.reencoded],
        "counts": dict(found.counts),
        "findings": [asdict(finding) for finding in found.findings],
    }
