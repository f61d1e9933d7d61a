"""The matrix products of `model.products` on a card, by the tiles that they are cut to."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple
from functools import partial

import torch
from subject import Subject
from torch import Tensor

from stae_cli.codec.cuda.selftest import why_unmultiplied

Task = tuple[Callable[[Tensor], object], list[Tensor]]


def tiles(subject: Subject) -> dict:
    """Milliseconds of each product of the encoder, by rows, columns, warps, stages and programs.

    Rows are those that go through the layers at once. None where Triton does not make them.
    """
    if why_unmultiplied(subject.device, subject.dtype) is not None:
        return {}
    from stae_cli.codec.cuda.products import configurations

    with torch.cuda.device(subject.device):
        tasks: dict[str, Task] = {}
        for name, (product, rows, adds) in products(subject).items():
            for cut in configurations(adds=adds):
                shape = "x".join(map(str, astuple(cut)))
                tasks[f"{name} {shape}"] = partial(product, tiles=cut), rows
        return {name: asdict(spread) for name, spread in subject.timed(tasks).items()}


def products(subject: Subject) -> Mapping[str, tuple[Callable[..., object], list[Tensor], bool]]:
    """Each product with its inputs, and whether it adds to what it writes."""
    from stae_cli.codec.cuda import products as made
    from stae_cli.codec.inference import ROWS

    count, width = ROWS["cuda"], subject.model.architecture.width
    hidden = 2 * width

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, device=subject.device, dtype=subject.dtype)

    rows, wide = ([drawn(count, size) for _ in range(4)] for size in (width, hidden))
    target, lacking = drawn(count, width), drawn(width).float()
    raised, bias = drawn(2 * hidden, width) / width**0.5, drawn(2 * hidden)
    inner, down = drawn(width, width) / width**0.5, drawn(width, hidden) / (4 * hidden)
    squares = torch.ones(width // 128, count, device=subject.device)
    norm = made.Norm(squares, torch.zeros(2 * hidden, device=subject.device))

    def geglu(given: Tensor, **cut: object) -> object:
        return made.geglu_product(given, raised, bias, norm=norm, **cut)

    def add(given: Tensor, **cut: object) -> object:
        return made.add_product_squares(target, given, down, lacking, **cut)

    def gelu(given: Tensor, **cut: object) -> object:
        return made.gelu_product(given, inner, lacking.to(subject.dtype), exact=True, **cut)

    return {
        "geglu": (geglu, rows, False),
        "add": (add, wide, True),
        "gelu": (gelu, rows, False),
    }
