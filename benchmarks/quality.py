"""PSNR, SSIM and MSE of checkpoints over a folder of photos, beside the linear PCA autoencoder.

    python benchmarks/quality.py PHOTOS --fit OTHER_PHOTOS --weights builtin --weights NEW

Prints a Markdown table. Whole photos, through float16 latents and 8-bit pixels, as `stae roundtrip`
scores them; sides that are no multiple of the patch are cropped. The PCA is fitted on other photos
than it is scored on, with as many components as the first checkpoint has latent channels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from stae_cli.files.buffers import Pixels
from stae_cli.files.images import IMAGE_SUFFIXES, open_image
from stae_cli.files.prep import Prep, prepare
from stae_cli.files.sources import list_sources
from stae_cli.metrics import Overall, compare, overall
from stae_cli.model.checkpoint import load_checkpoint
from stae_cli.model.codec import pick_device
from stae_cli.model.pixels import PixelCodec
from stae_cli.training.crops import Crops
from stae_cli.training.linear import Pca, fit_pca, to_patches
from stae_cli.training.photos import load_photos

PATCH = 8
Reconstruct = Callable[[Pixels], Pixels]


def main() -> None:
    options = parsed()
    pictures = read(options.photos)
    rows: list[tuple[str, Overall]] = []
    if options.fit is not None:
        pca = fitted(options.fit)
        name = f"linear PCA, {options.components} components"
        rows.append((name, scored(pictures, linear(pca, options.components))))
    for weights in options.weights:
        checkpoint = load_checkpoint(weights)
        codec = PixelCodec(
            checkpoint.model(), device=pick_device(options.device), dtype=torch.float32
        )
        rows.append((checkpoint.name, scored(pictures, network(codec))))
    print(table(rows))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="files or a folder to score on")
    parser.add_argument("--weights", action="append", default=[], help="as `stae` takes them")
    parser.add_argument("--fit", type=Path, help="other photos, to fit the PCA on")
    parser.add_argument("--components", type=int, default=16)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def read(source: Path) -> list[Pixels]:
    listing = list_sources([source], None, suffixes=IMAGE_SUFFIXES)
    pictures = []
    for entry in listing.entries:
        with entry.path.open("rb") as file:
            image = open_image(file, name=entry.key)
            pictures.append(prepare(image, Prep(edges="crop"), patch=PATCH).pixels)
    return pictures


def scored(pictures: Sequence[Pixels], reconstruct: Reconstruct) -> Overall:
    return overall([compare(picture, reconstruct(picture)) for picture in pictures])


def network(codec: PixelCodec) -> Reconstruct:
    def reconstruct(picture: Pixels) -> Pixels:
        (latent,) = codec.encode_pixels([picture])
        assert latent is not None, "NaN in a latent"
        (pixels,) = codec.decode_pixels([latent.astype(np.float16)])
        assert pixels is not None, "NaN in a picture"
        return pixels

    return reconstruct


def fitted(source: Path) -> Pca:
    photos = load_photos([source], crop=64, memory=4 << 30)
    crops = Crops(photos, crop=64, batch=64, seed=0, device=torch.device("cpu"))
    return fit_pca(crops, patch=PATCH)


def linear(pca: Pca, components: int) -> Reconstruct:
    basis = pca.directions[:, :components]

    def reconstruct(picture: Pixels) -> Pixels:
        image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].double() / 127.5 - 1
        rows = to_patches(image, PATCH)
        rows = (rows - pca.mean) @ basis @ basis.T + pca.mean
        height, width = (side // PATCH for side in picture.shape[:2])
        grid = rows.view(height, width, 3, PATCH, PATCH).permute(0, 3, 1, 4, 2)
        levels = ((grid + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return levels.reshape(picture.shape).numpy()

    return reconstruct


def table(rows: Sequence[tuple[str, Overall]]) -> str:
    lines = ["| | PSNR dB | SSIM | MSE |", "|---|---|---|---|"]
    for name, figures in rows:
        ssim = "-" if figures.ssim is None else f"{figures.ssim:.4f}"
        lines.append(f"| {name} | {figures.psnr:.3f} | {ssim} | {figures.mse:.6f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
