"""What a device does of one thing at a time: copies, the 3x3 convolution, matrix products."""

from dataclasses import asdict

import torch
from subject import Subject
from torch import Tensor
from torch.nn.functional import conv2d

from stae_cli.benchmark.matmul import Matmul, Shape
from stae_cli.benchmark.report import Spread

COPIED = {"cuda": 2 << 30}  # bytes
FEW_COPIED = 16 << 20  # elsewhere
BEST = {"cuda": [(8192, 8192, 8192)]}


def ceilings(subject: Subject) -> dict:
    """Rates of all of them, measured in the same rounds."""
    size = COPIED.get(subject.device.type, FEW_COPIED)
    pictures, weight = conv_operands(subject)
    flops = 2 * pictures[0].numel() * weight[0].numel()
    matmuls = [Matmul(s, subject.device, subject.dtype) for s in product_shapes(subject)]

    def conv(picture: Tensor) -> Tensor:
        return conv2d(picture, weight, padding=1)

    def tuned_conv(picture: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            return conv2d(picture, weight, padding=1)

    sources, target = copy_operands(subject, size)
    tasks = {
        "copy": (target.copy_, sources),
        "conv": (conv, pictures),
        "conv, tuned": (tuned_conv, pictures),
    }
    times = subject.timed(tasks, matmuls)
    found: dict = {"matmuls": [
        {"shape": [*each.shape], "tflops": rate(each.flops / 1e12, times[str(each.shape)])}
        for each in matmuls
    ]}  # fmt: skip
    if "copy" in times:
        speed = rate(2 * size / 1e9, times["copy"])  # read and written
        found["copy"] = {"bytes": size, "gigabytes_per_second": speed}
    for name in ("conv", "conv, tuned"):
        if name in times:
            speed = rate(flops / 1e12, times[name])
            found[name] = {"shape": [*pictures[0].shape], "tflops": speed}
    return found


def copy_operands(subject: Subject, size: int) -> tuple[list[Tensor], Tensor]:
    sources = [
        torch.randint(256, (size,), dtype=torch.uint8, device=subject.device) for _ in range(2)
    ]
    return sources, torch.empty_like(sources[0])


def conv_operands(subject: Subject) -> tuple[list[Tensor], Tensor]:
    """(B, C, h, w), channels last, more of them than a cache holds, and (C, C, 3, 3)."""
    width, case = subject.model.architecture.width, subject.case
    shape = (case.batch, width, case.height // 8, case.width // 8)
    last = torch.channels_last

    def drawn(*shape: int) -> Tensor:
        found = torch.randn(shape, device=subject.device, dtype=subject.dtype)
        return found.contiguous(memory_format=last)

    return [drawn(*shape) for _ in range(3)], drawn(width, width, 3, 3) / (3 * width**0.5)


def product_shapes(subject: Subject) -> list[Shape]:
    """All rows of the case through the widest layers, and what the device does best."""
    width, case = subject.model.architecture.width, subject.case
    rows = case.batch * case.height * case.width // 64
    best = BEST.get(subject.device.type, [])
    return [(rows, width, 4 * width), (rows, 2 * width, width), *best]


def rate(amount: float, times: Spread) -> dict[str, float]:
    """Of so much in so many milliseconds, per second."""
    return asdict(Spread(*(1000 * amount / t for t in (times.median, times.p90, times.p10))))
