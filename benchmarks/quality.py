"""Scores checkpoints on a folder of photos beside the linear PCA autoencoder: PSNR, SSIM and MSE.

    python -m benchmarks.quality PHOTOS --fit OTHER_PHOTOS --weights builtin --weights NEW

Prints and records a table. Whole photos, through float16 latents and 8-bit pixels, as in
`stae roundtrip`; sides that are not a multiple of the patch are cropped. The PCA is fitted on all
patches of other photos, with as many components as the first checkpoint has latent channels.

`--peer FOLDER` scores another autoencoder that diffusers has saved (TAESD and its family, or a KL
autoencoder) in the same way, `--peer FILE` one of TAESD's family. `--lpips` adds a column. Nothing
is downloaded without `--download`.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from benchmarks.record import options, record
from benchmarks.report import quality_table
from stae_cli.checkpoints.checkpoint import Checkpoint, load_checkpoint
from stae_cli.codec.device import pick_device
from stae_cli.codec.pixel_codec import PixelCodec
from stae_cli.errors import InputError, StaeError, UsageError
from stae_cli.images.buffers import Pixels
from stae_cli.images.read import IMAGE_SUFFIXES, open_image
from stae_cli.images.resize import Prep, prepare
from stae_cli.metrics import Overall, compare, overall
from stae_cli.network.architecture import F8C16, Architecture
from stae_cli.storage.sources import list_sources
from stae_cli.training.linear import Pca, pca_of, to_patches

PEER_PATCH = 8
ALEXNET = "alexnet-owt-7be5be79.pth"  # what torchvision calls the features that LPIPS measures in
ABSENT = (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError)

Reconstruct = Callable[[Pixels], Pixels]
Distance = Callable[[Pixels, Pixels], float]


@dataclass(frozen=True)
class Row:
    """One autoencoder's figures; `lpips` is the mean over the photos, where it was asked for."""

    name: str
    figures: Overall
    lpips: float | None = None


def main(argv: Sequence[str] | None = None) -> None:
    given = parsed(argv)
    try:
        rows = [asdict(row) for row in measured(given)]
    except StaeError as error:
        sys.exit(f"error: {error.message}\nhint: {error.hint}")
    print("\n".join(quality_table(rows)))
    facts = {"photos": given.photos.name, "fit": [fit.name for fit in given.fit], "rows": rows}
    record(given, "quality", facts, str(pick_device(given.device)))


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options("quality", __doc__)
    parser.add_argument("photos", type=Path, help="a file or a folder to score on")
    parser.add_argument("--weights", action="append", default=[], help="as `stae` takes them")
    parser.add_argument(
        "--fit", type=Path, action="append", default=[], help="other photos, to fit the PCA on"
    )
    parser.add_argument("--components", type=int, help="of the PCA; else as the first checkpoint")
    parser.add_argument("--peer", action="append", default=[], help="a folder or file of diffusers")
    parser.add_argument("--lpips", action="store_true", help="also LPIPS (AlexNet)")
    parser.add_argument("--download", action="store_true", help="fetch what is not cached")
    parser.add_argument("--device", default="auto")
    return parser.parse_args(argv)


def measured(given: argparse.Namespace) -> list[Row]:
    """Checks for everything that may be missing before it measures."""
    device = pick_device(given.device)
    distance = lpips_distance(download=given.download) if given.lpips else None
    peers = [(name, peer(name, device, download=given.download)) for name in given.peer]
    checkpoints = [load_checkpoint(name) for name in given.weights]
    if not (checkpoints or peers or given.fit):
        raise UsageError("nothing to score", "give `--weights`, `--fit` or `--peer`")
    sizes = checkpoints[0].architecture if checkpoints else F8C16
    patches = [PEER_PATCH, sizes.downsample, *(c.architecture.downsample for c in checkpoints)]
    pictures = list(read([given.photos], math.lcm(*patches)))
    rows = []
    if given.fit:
        rows.append(baseline(pictures, distance, given, sizes))
    for checkpoint in checkpoints:
        rows.append(score(checkpoint.name, pictures, network(checkpoint, device), distance))
    return rows + [score(name, pictures, reconstruct, distance) for name, reconstruct in peers]


def read(sources: Sequence[Path], patch: int) -> Iterator[Pixels]:
    for entry in list_sources(sources, None, suffixes=IMAGE_SUFFIXES).entries:
        try:
            with entry.path.open("rb") as file:
                image = open_image(file, name=entry.key)
                yield prepare(image, Prep(edges="crop"), patch=patch).pixels
        except (InputError, OSError) as error:
            raise StaeError(
                f"cannot read `{entry.path}`: {error}", "remove it from the folder"
            ) from error


def score(
    name: str, pictures: Sequence[Pixels], reconstruct: Reconstruct, distance: Distance | None
) -> Row:
    scores, distances = [], []
    for picture in pictures:
        made = reconstruct(picture)
        scores.append(compare(picture, made))
        if distance is not None:
            distances.append(distance(picture, made))
    return Row(name, overall(scores), sum(distances) / len(distances) if distances else None)


def network(checkpoint: Checkpoint, device: torch.device) -> Reconstruct:
    codec = PixelCodec(checkpoint.model(), device=device, dtype=torch.float32)

    def reconstruct(picture: Pixels) -> Pixels:
        (latent,) = codec.encode_pixels([picture])
        assert latent is not None, "NaN in a latent"
        (pixels,) = codec.decode_pixels([latent.astype(np.float16)])
        assert pixels is not None, "NaN in a picture"
        return pixels

    return reconstruct


def baseline(
    pictures: Sequence[Pixels],
    distance: Distance | None,
    given: argparse.Namespace,
    sizes: Architecture,
) -> Row:
    components = given.components or sizes.channels
    pca = pca_of(map(image_of, read(given.fit, sizes.downsample)), patch=sizes.downsample)
    values = len(pca.mean)
    if not 0 < components <= values:
        raise UsageError(f"a patch does not have {components} components", f"give 1 to {values}")
    name = f"linear PCA, {values} to {components}"
    return score(name, pictures, linear(pca, components, sizes.downsample), distance)


def linear(pca: Pca, components: int, patch: int) -> Reconstruct:
    basis = pca.directions[:, :components]

    def reconstruct(picture: Pixels) -> Pixels:
        rows = to_patches(image_of(picture).double(), patch)
        latents = ((rows - pca.mean) @ basis).half().double()
        rows = latents @ basis.T + pca.mean
        height, width = (side // patch for side in picture.shape[:2])
        grid = rows.view(height, width, 3, patch, patch).permute(2, 0, 3, 1, 4)
        return pixels_of(grid.reshape(1, 3, *picture.shape[:2]))

    return reconstruct


def peer(name: str, device: torch.device, *, download: bool) -> Reconstruct:
    """An autoencoder of diffusers: a folder, a file of a TAESD, or a name on the hub."""
    try:
        import diffusers
    except ImportError as error:
        raise StaeError(
            f"scoring `{name}` needs diffusers", "run `pip install 'stae[peers]'`"
        ) from error
    try:
        if Path(name).is_file():
            model = tiny_autoencoder(load_file(name))
        else:
            where = {"local_files_only": not download}
            facts = diffusers.AutoencoderTiny.load_config(name, **where)
            model = getattr(diffusers, facts["_class_name"]).from_pretrained(name, **where)
    except ABSENT as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise StaeError(
            f"`{name}` is not an available autoencoder: {reason}",
            "give a folder with diffusers' config.json and weights, a .safetensors file of a "
            "TAESD in diffusers' names, or a name on the hub with `--download`",
        ) from error
    model = model.eval().requires_grad_(False).to(device)

    def reconstruct(picture: Pixels) -> Pixels:
        coded = model.encode(image_of(picture).to(device))
        latents = coded.latents if hasattr(coded, "latents") else coded.latent_dist.mode()
        return pixels_of(model.decode(latents.half().float()).sample)

    return reconstruct


def tiny_autoencoder(tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """TAESD, TAESDXL, TAESD3, TAEF1: they differ in the number of latent channels only."""
    from diffusers import AutoencoderTiny

    layers = [int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layers.")]
    last = tensors[f"encoder.layers.{max(layers)}.bias"]
    model = AutoencoderTiny(latent_channels=len(last))
    model.load_state_dict(dict(tensors), strict=True)
    return model


def lpips_distance(*, download: bool) -> Distance:
    """Zhang et al., The unreasonable effectiveness of deep features (CVPR 2018), on the CPU."""
    try:
        import lpips
    except ImportError as error:
        raise StaeError(
            "`--lpips` needs the library lpips", "run `pip install lpips torchvision`"
        ) from error
    weights = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if not weights.exists() and not download:
        raise StaeError(
            f"`--lpips` needs AlexNet's weights, and `{weights}` does not exist",
            "put them there, or allow `--download`",
        )
    network = lpips.LPIPS(net="alex", verbose=False).eval()

    def distance(original: Pixels, reconstruction: Pixels) -> float:
        with torch.no_grad():
            return float(network(image_of(original), image_of(reconstruction)))

    return distance


def image_of(picture: Pixels) -> torch.Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def pixels_of(image: torch.Tensor) -> Pixels:
    """The inverse, rounded to nearest and clamped."""
    levels = ((image[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(1, 2, 0).contiguous().cpu().numpy()


if __name__ == "__main__":
    main()
