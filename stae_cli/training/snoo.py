"""Snoo: a Nesterov step on slow weights after every few steps of any optimizer.

arXiv 2510.15830. Built on torch's own SGD; without momentum it is Lookahead (arXiv 1907.08610).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Snoo:
    """The outer step: slow weights follow the fast ones, with momentum.

    Args:
        parameters: the fast weights, which the inner optimizer moves.
        learning_rate: of the outer step; with momentum 0, the share of the way that slow goes.
        momentum: of the outer step.
        every: inner steps between outer ones.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        learning_rate: float = 0.67,
        momentum: float = 0.67,
        every: int = 20,
    ) -> None:
        self._fast = list(parameters)
        self._slow = [fast.detach().clone() for fast in self._fast]
        self.every = every
        # torch refuses nesterov without momentum, where it would mean nothing.
        self._outer = torch.optim.SGD(
            self._slow, lr=learning_rate, momentum=momentum, nesterov=momentum > 0
        )

    @torch.no_grad()
    def step(self, steps_done: int) -> None:
        """Call after every inner step; does something after each `every` of them."""
        if steps_done % self.every:
            return
        for slow, fast in zip(self._slow, self._fast, strict=True):
            slow.grad = slow - fast
        self._outer.step()
        for slow, fast in zip(self._slow, self._fast, strict=True):
            slow.grad = None
            fast.copy_(slow)

    def state_dict(self) -> dict[str, Any]:
        """The slow weights and the outer momentum."""
        return {"slow": list(self._slow), "outer": self._outer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        with torch.no_grad():
            for slow, saved in zip(self._slow, state["slow"], strict=True):
                slow.copy_(saved)
        self._outer.load_state_dict(state["outer"])
