"""Weights that depend on a seed alone, drawn without disturbing the caller's random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SEED = 20250801


@contextmanager
def seeded(seed: int = SEED) -> Iterator[None]:
    """Within it, CPU tensors are drawn from `seed`; after it, the generator goes on as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
