"""`stae train`: photos to a checkpoint."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stae_cli.cli import options as opt
from stae_cli.cli.console import log_info, share_bar
from stae_cli.cli.report import announce_training, finish_training, progress_shown
from stae_cli.errors import UsageError

if TYPE_CHECKING:
    from stae_cli.checkpoints.checkpoint import Checkpoint
    from stae_cli.network.architecture import Architecture


recipe_option = partial(typer.Option, rich_help_panel="Recipe")

RecipeName = Literal["default", "published"]
OptimizerName = Literal["adamw", "muon"]
Init = Literal["pca", "random"]
TrainDtype = Literal["auto", "bfloat16", "float32"]

RecipeOption = Annotated[
    RecipeName,
    recipe_option(
        "--recipe",
        help="Defaults for what is not given; published: random start, Muon in Snoo, rate 1e-3, "
        "256 crops of 256 pixels, 30,000 steps.",
    ),
]
OptimizerOption = Annotated[
    OptimizerName | None,
    recipe_option("--optimizer", help="adamw (default), or muon for the hidden layers."),
]
SnooOption = Annotated[
    bool | None,
    recipe_option(
        "--snoo/--no-snoo", help="An outer Nesterov step every 20 steps.", show_default=False
    ),
]
DtypeOption = Annotated[
    TrainDtype,
    opt.machine_option(
        "--dtype",
        metavar="DTYPE",
        help="bfloat16, float32, or auto: bfloat16 on CUDA, else float32.",
    ),
]
Compile = Annotated[bool, opt.machine_option("--compile", help="Compile the network first.")]
Replace = Annotated[
    bool,
    opt.file_option(
        "--overwrite", help="Replace CHECKPOINT, and an unfinished run with other settings."
    ),
]
Photos = Annotated[
    list[Path],
    typer.Argument(
        metavar="PHOTOS",
        help="Files or folders; each one gives the same share of the crops.",
        show_default=False,
    ),
]
Out = Annotated[
    Path, opt.file_option("--out", metavar="CHECKPOINT", help="The .safetensors to write.")
]
From = Annotated[
    str | None,
    opt.network_option(
        "--from", metavar="NAME", help=f"Start from this checkpoint. {opt.WEIGHTS_HELP}"
    ),
]
InitOption = Annotated[
    Init | None,
    opt.network_option(
        "--init", help="Start of a new checkpoint: PCA of the photos (default), or random."
    ),
]
StageOption = Annotated[
    int,
    opt.network_option(
        "--stage",
        metavar="2",
        min=1,
        max=2,
        help="2: train the second stage of a 32x network on the first one that `--from` names.",
        show_default=False,
    ),
]
Validate = Annotated[
    Path | None,
    opt.file_option(metavar="FOLDER", help="Photos to measure PSNR on; never trained on."),
]
Steps = Annotated[int | None, recipe_option(metavar="N", min=1, help="Train for N steps.")]
Minutes = Annotated[
    float | None,
    recipe_option(metavar="M", min=0, help="Train for M minutes; interruptions do not count."),
]
Rate = Annotated[
    float | None,
    recipe_option(
        "--lr", metavar="RATE", min=0, help="Highest learning rate; it then falls along a cosine."
    ),
]
Batch = Annotated[
    int | None, recipe_option(metavar="N", min=1, max=1 << 20, help="Crops per step.")
]
Seed = Annotated[
    int, recipe_option(metavar="N", min=0, max=(1 << 64) - 1, help="Of crops and random starts.")
]
Crop = Annotated[int | None, recipe_option(metavar="PIXELS", min=8, help="Side of the crops.")]
Memory = Annotated[
    float,
    opt.machine_option(
        metavar="GB", min=0, help="Memory for decoded photos; the rest are left out."
    ),
]
SaveEvery = Annotated[
    float, opt.file_option(metavar="MINUTES", min=0, help="Time between saves of the state.")
]


def train(
    photos: Photos,
    out: Out,
    validate: Validate = None,
    save_every: SaveEvery = 5.0,
    overwrite: Replace = False,
    from_: From = None,
    architecture: opt.ArchitectureName = None,
    stage: StageOption = 1,
    init: InitOption = None,
    recipe: RecipeOption = "default",
    steps: Steps = None,
    minutes: Minutes = None,
    batch: Batch = None,
    crop: Crop = None,
    lr: Rate = None,
    optimizer: OptimizerOption = None,
    snoo: SnooOption = None,
    seed: Seed = 0,
    device: opt.Device = "auto",
    dtype: DtypeOption = "auto",
    compile: Compile = False,  # noqa: A002
    memory: Memory = 4.0,
    workers: opt.Workers = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> int:
    """Train or fine-tune a checkpoint on photos.

    Run the same command again after an interruption: it continues from the last saved state.
    To start from the beginning, remove the folder NAME.training beside NAME.safetensors.
    """
    device = opt.parse_device(device)
    if stage == 2 and from_ is None:
        raise UsageError(
            "a second stage needs its first", "name its checkpoint with `--from`, such as builtin"
        )
    if from_ is not None and init is not None and stage == 1:
        raise UsageError("`--from` and `--init` contradict each other", "give one of them")

    from stae_cli.checkpoints.checkpoint import load_checkpoint
    from stae_cli.codec.device import pick_device
    from stae_cli.training.ranks import joined
    from stae_cli.training.recipe import PUBLISHED, Recipe, TrainSettings, with_given
    from stae_cli.training.run import Run
    from stae_cli.training.workspace import Workspace

    if from_ is not None and Path(from_).absolute() == Workspace(out).last.absolute():
        raise UsageError(
            f"`{from_}` is what the run itself writes", "give another `--out`, or move the file"
        )
    initial = None if from_ is None else load_checkpoint(from_)
    network = _architecture(architecture, stage, initial)
    with joined(device, attempt=_attempt()) as ranks:
        place = ranks.device(pick_device(device))
        wanted = with_given(
            PUBLISHED if recipe == "published" else Recipe("pca"),
            start=_start(initial, init, stage),
            steps=steps,
            minutes=minutes,
            optimizer=optimizer,
            snoo=snoo,
            learning_rate=lr,
            batch=batch,
            crop=crop,
            dtype=_dtype(dtype, place.type),
            seed=seed,
        )
        log_info(f"device {place}, {wanted.dtype}")
        settings = TrainSettings(
            sources=photos,
            out=out,
            recipe=wanted,
            architecture=network,
            initial=initial,
            second_start="random" if init == "random" else "pca",
            validate=validate,
            memory=int(min(memory * 1e9, sys.maxsize)),
            workers=workers,
            compiled=compile,
            save_seconds=60 * save_every,
            overwrite=overwrite,
        )
        with share_bar("train", quiet=quiet or not ranks.first) as show:
            run = Run(settings, device=place, ranks=ranks, on_progress=progress_shown(show))
            if ranks.first:
                announce_training(run, quiet=quiet)
            outcome = run.train()
        if ranks.first:
            return finish_training(outcome, quiet=quiet, as_json=as_json)
    return 0


def _attempt() -> int:
    """How often torchrun has restarted all processes; several machines may disagree about it."""
    alone = os.environ.get("GROUP_WORLD_SIZE") == "1"
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) if alone else 0


def _architecture(name: str | None, stage: int, initial: Checkpoint | None) -> Architecture:
    """The network to train: by its name, or that of the checkpoint to start from."""
    from stae_cli.checkpoints.checkpoint import check_architecture
    from stae_cli.network.architecture import F8C16, preset
    from stae_cli.training.start import two_stages

    wanted = None if name is None else preset(name)
    if initial is None:
        return wanted or F8C16
    if stage == 2:
        return two_stages(initial, wanted)
    if wanted is not None:
        check_architecture(initial, wanted)
    return initial.architecture


def _start(initial: Checkpoint | None, init: Init | None, stage: int) -> str | None:
    if initial is None:
        return init
    first = f"{initial.name} {initial.fingerprint}"
    return f"{first}, second stage {init or 'pca'}" if stage == 2 else first


def _dtype(dtype: TrainDtype, device: str) -> Literal["float32", "bfloat16"]:
    if dtype == "auto":
        return "bfloat16" if device == "cuda" else "float32"
    return dtype
