"""The moving average of the weights: what is validated and saved."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from stae_cli.network.stupid_ae import StupidAE


class Average:
    """An exponential moving average of a model's weights.

    The decay rises with the number of updates n as (1 + n) / (10 + n), so that the average
    forgets where a run began.
    """

    def __init__(self, model: StupidAE, *, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self._averages: list[Tensor] = list(self.model.parameters())

    @torch.no_grad()
    def update(self, model: StupidAE, *, step: int) -> None:
        """Takes in the weights after a step (counted from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(self._averages, weights, 1 - decay)
