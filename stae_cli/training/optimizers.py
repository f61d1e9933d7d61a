"""The optimizers of a recipe behind one interface: AdamW, Muon, and Snoo around either."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from stae_cli.errors import UsageError
from stae_cli.network.stupid_ae import StupidAE
from stae_cli.training.recipe import Recipe

BETAS = (0.9, 0.99)
NO_HIDDEN_LAYERS = (  # first and last layers of encoders and decoders, and the embedding
    "encoder.0.initial.0.weight",
    "encoder.0.out.model.2.weight",
    "decoder.0.conv_in.model.0.weight",
    "decoder.0.last.weight",
    "decoder.0.shuffle.0.weight",
    "encoder.1.initial.0.weight",
    "encoder.1.out.model.2.weight",
    "decoder.1.conv_in.model.0.weight",
    "decoder.1.shuffle.0.weight",
    "decoder.0.positions",
)
FUSED_ON = ("cpu", "cuda", "mps")


class Snoo:
    """A Nesterov step on slow weights after every few steps of any optimizer (arXiv 2510.15830).

    Built on torch's own SGD; without momentum it is Lookahead (arXiv 1907.08610).

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
        """Call after every inner step; moves the weights after each `every` of them."""
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


class Optimizer:
    """The inner optimizers and, around them, the outer step of a recipe.

    Args:
        model: in float32; its parameters that require gradients are trained.
        recipe: names the optimizer.

    Raises:
        UsageError: its library is not installed.
    """

    def __init__(self, model: StupidAE, recipe: Recipe) -> None:
        self._inner = _inner(model, recipe)
        self._outer = Snoo(_trained(model)) if recipe.snoo else None

    def step(self, *, rate: float, steps_done: int) -> None:
        """One step at this learning rate; `steps_done` counts this one."""
        for inner in self._inner:
            for group in inner.param_groups:
                group["lr"] = rate
            inner.step()
            inner.zero_grad(set_to_none=True)
        if self._outer is not None:
            self._outer.step(steps_done)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        outer = None if self._outer is None else self._outer.state_dict()
        return {"inner": [inner.state_dict() for inner in self._inner], "outer": outer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for inner, saved in zip(self._inner, state["inner"], strict=True):
            inner.load_state_dict(saved)
        if self._outer is not None:
            self._outer.load_state_dict(state["outer"])


def _inner(model: StupidAE, recipe: Recipe) -> list[torch.optim.Optimizer]:
    if recipe.optimizer == "adamw":
        return [_adamw(_trained(model), recipe)]
    hidden, others = split_for_muon(model)
    return [_muon(hidden, recipe), _adamw(others, recipe)]


def _trained(model: StupidAE) -> list[Tensor]:
    """A frozen first stage stays out."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def split_for_muon(model: StupidAE) -> tuple[list[Tensor], list[Tensor]]:
    """The hidden layers' matrices, which Muon is meant for, and everything else."""
    hidden: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = parameter.ndim > 1 and name not in NO_HIDDEN_LAYERS
        (hidden if matrix else others).append(parameter)
    return hidden, others


def _muon(parameters: list[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """Convolutions are flattened to (out, in * k * k) by the library.

    Updates are scaled to the size that AdamW's have, so that both use one learning rate
    (arXiv 2502.16982).
    """
    try:
        from pytorch_optimizer import Muon
    except ImportError as error:
        raise UsageError(
            "Muon comes from the library pytorch-optimizer, which is not installed",
            "install it: `pip install 'stae[train]'`, or use `--optimizer adamw`",
        ) from error
    group = {"params": parameters, "use_muon": True, "use_adjusted_lr": True}
    return Muon([group | {"lr": recipe.learning_rate}])


def _adamw(parameters: list[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    fused = all(parameter.device.type in FUSED_ON for parameter in parameters)
    return torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, betas=BETAS, weight_decay=0.0, fused=fused
    )
