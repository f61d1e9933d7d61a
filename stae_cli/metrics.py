"""The distance of a reconstruction from its original, on 8-bit pixels: MSE, PSNR and SSIM."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity

Pixels = npt.NDArray[np.uint8]

HALF_RANGE = 127.5  # pixels are compared on the network's scale, [-1, 1]
SSIM_TAPS = 11
SSIM_SIGMA = 1.5
STRIP_PIXELS = 1 << 17  # keeps SSIM's dozen float64 buffers at about 12 MB
STRIP_ROWS = 100  # at least, so that the rows that strips share cost little


@dataclass(frozen=True)
class Score:
    """How far one reconstruction is from its original.

    `mse` is on the scale [-1, 1]. `psnr` is in dB, infinite for identical pictures. `ssim` is
    None if a side is below 11, the size of its window.
    """

    mse: float
    psnr: float
    ssim: float | None
    pixels: int

    def as_json(self) -> dict[str, float | None]:
        """The figures, with null for a PSNR that is infinite (`mse` is then 0)."""
        return {"mse": self.mse, "psnr": finite(self.psnr), "ssim": self.ssim}


@dataclass(frozen=True)
class Overall:
    """Figures of a set of pictures.

    `mse` is pooled over all pixels. `psnr` is the mean over the pictures that differ at all
    (infinite if none does), so that an exact reproduction does not hide the others; `identical`
    counts those. `ssim` is the mean over the pictures that have one, None if none has.
    """

    pictures: int
    identical: int
    mse: float
    psnr: float
    ssim: float | None

    def as_json(self) -> dict[str, int | float | None]:
        """The figures, with null for an infinite PSNR."""
        return {**asdict(self), "psnr": finite(self.psnr)}


def compare(original: Pixels, reconstruction: Pixels) -> Score:
    """Scores a reconstruction.

    MSE = mean((a - b)^2) / 127.5^2, PSNR = 10 log10(4 / MSE). SSIM is that of Wang et al., Image
    quality assessment (IEEE TIP, 2004): 11-tap Gaussian window, sigma 1.5, data range 255,
    population covariance, averaged over the positions where the window fits and over RGB.

    Args:
        original: (H, W, 3) uint8.
        reconstruction: (H, W, 3) uint8 of the same size.

    Raises:
        ValueError: other dtypes or shapes.
    """
    for pixels in (original, reconstruction):
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise ValueError(f"not (H, W, 3) uint8 pixels: {pixels.dtype} {pixels.shape}")
    if original.shape != reconstruction.shape:
        raise ValueError(f"sizes differ: {original.shape} and {reconstruction.shape}")
    mse = _mean_squared_error(original, reconstruction)
    height, width = original.shape[:2]
    return Score(mse, psnr(mse), _similarity(original, reconstruction), height * width)


def overall(scores: Sequence[Score]) -> Overall:
    """The figures of a set of at least one picture.

    Raises:
        ValueError: there are none.
    """
    if not scores:
        raise ValueError("no scores to summarise")
    pixels = sum(score.pixels for score in scores)
    ratios = [score.psnr for score in scores]
    similarities = [score.ssim for score in scores if score.ssim is not None]
    return Overall(
        pictures=len(scores),
        identical=ratios.count(math.inf),
        mse=math.fsum(score.mse * score.pixels for score in scores) / pixels,
        psnr=mean_psnr(ratios),
        ssim=_mean(similarities) if similarities else None,
    )


def psnr(mse: float) -> float:
    """10 log10(4 / MSE) in dB for an MSE on the scale [-1, 1]; infinite for 0."""
    return 10 * math.log10(4 / mse) if mse else math.inf


def mean_psnr(ratios: Sequence[float]) -> float:
    """The mean in dB of the finite ones, infinite if there are none."""
    differing = [ratio for ratio in ratios if math.isfinite(ratio)]
    return _mean(differing) if differing else math.inf


def _mean_squared_error(original: Pixels, reconstruction: Pixels) -> float:
    total = 0  # an exact integer: the strips' height does not change the figure
    for top, bottom in _strips(*original.shape[:2]):
        difference = np.subtract(original[top:bottom], reconstruction[top:bottom], dtype=np.int32)
        total += int(np.square(difference, out=difference).sum(dtype=np.int64))
    return total / original.size / HALF_RANGE**2


def _similarity(original: Pixels, reconstruction: Pixels) -> float | None:
    height, width = original.shape[:2]
    if min(height, width) < SSIM_TAPS:
        return None
    rows = height - SSIM_TAPS + 1  # where the window fits
    total = 0.0
    for top, bottom in _strips(rows, width):
        window = slice(top, bottom + SSIM_TAPS - 1)
        for channel in range(3):
            total += (bottom - top) * _mean_similarity(
                original[window, :, channel], reconstruction[window, :, channel]
            )
    return total / (3 * rows)


def _mean_similarity(original: Pixels, reconstruction: Pixels) -> float:
    """SSIM of one channel's strip (h, W), averaged over the positions where the window fits."""
    similarity = structural_similarity(
        original.astype(np.float64),  # float32 loses the sixth digit of bright flat pictures
        reconstruction.astype(np.float64),
        win_size=SSIM_TAPS,
        gaussian_weights=True,
        sigma=SSIM_SIGMA,
        use_sample_covariance=False,
        data_range=255,
    )
    return float(similarity)


def _strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that cover the height, about STRIP_PIXELS each."""
    step = max(STRIP_ROWS, STRIP_PIXELS // width)
    for top in range(0, height, step):
        yield top, min(top + step, height)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def finite(value: float) -> float | None:
    """The value, or None for infinity and NaN, which JSON does not have."""
    return value if math.isfinite(value) else None
