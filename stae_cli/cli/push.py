"""`stae push`: latents to a dataset on the Hugging Face hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stae_cli.cli import options as opt
from stae_cli.cli.console import print_fact, print_json, print_note, print_warning, progress_bar
from stae_cli.cli.report import ALL_GOOD

if TYPE_CHECKING:
    from stae_cli.publishing.plan import PushPlan

NAMED = 5  # files in a note
MANY_FILES = 100_000  # the hub becomes slow


def push(
    latents: Annotated[str, typer.Argument(metavar="LATENTS", help="What `stae encode` wrote.")],
    repository: Annotated[
        str, typer.Argument(metavar="REPOSITORY", help="hf://OWNER/NAME, a dataset on the hub.")
    ],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Who sees a new dataset: only its owner, the default, or everyone.",
            show_default=False,
        ),
    ] = None,
    workers: opt.Workers = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> int:
    """Upload latents to a dataset on the Hugging Face hub, with a card that says what they are.

    Run the same command again after an interruption: it continues.
    """
    from stae_cli.publishing.plan import plan_push
    from stae_cli.publishing.upload import parse_repository
    from stae_cli.publishing.upload import push as run

    name = parse_repository(repository)
    plan = plan_push(latents, workers=workers)
    _warn(plan, quiet=quiet)
    with progress_bar(plan.size, what="push", quiet=quiet, unit="B") as advance:
        pushed = run(plan, name, private=private, advance=advance)
    if as_json:
        print_json(
            {
                "repository": pushed.repository,
                "url": pushed.url,
                "private": pushed.private,
                "latents": plan.count,
                "files": len(plan.sizes),
                "bytes": plan.size,
                "new_card": pushed.has_new_card,
                "left_out": plan.left_out,
                "failed_inputs": plan.failed,
            }
        )
    elif not quiet:
        kind = "private" if pushed.private else "public"
        print_fact(
            f"{plan.count:,} latents in {len(plan.latents):,} files, {plan.size / 1e6:.2f} MB"
        )
        print_fact(f"{pushed.url} ({kind})")
    return ALL_GOOD


def _warn(plan: PushPlan, *, quiet: bool) -> None:
    """Says what the upload lacks."""
    if plan.failed:
        print_warning(f"{plan.failed} inputs of the run failed, and have no latents here")
    if len(plan.latents) > MANY_FILES:
        print_warning(
            f"{len(plan.latents):,} files are slow on the hub: `stae encode --shard-size 1000` "
            "writes fewer"
        )
    if plan.left_out and not quiet:
        named = ", ".join(plan.left_out[:NAMED])
        more = f" and {len(plan.left_out) - NAMED} more" if plan.left_out[NAMED:] else ""
        print_note(f"not uploaded, as they are not of the run: {named}{more}")
