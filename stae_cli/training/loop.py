"""The loop: steps on batches of crops, their learning rate, their clock, and averaged weights."""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor, nn

from stae_cli.errors import StaeError
from stae_cli.network.stupid_ae import StupidAE
from stae_cli.training.optimizers import Optimizer
from stae_cli.training.photos import Crops
from stae_cli.training.ranks import Ranks
from stae_cli.training.recipe import Recipe

LOG_STEPS = 10
COMPILER = ("torch._dynamo", "torch._inductor")  # their exceptions have no public names
REMEMBERED = 31  # steps that the clock takes the usual duration from
LONGEST = 4.0  # usual steps; a longer one was not training: the process was stopped


class DivergedError(StaeError):
    """The loss or the gradient is no longer finite."""


def learning_rate(peak: float, *, step: int, warmup: int, progress: float) -> float:
    """The rate of a step: a linear rise over `warmup` steps, then a cosine to zero.

    Args:
        peak: the highest rate.
        step: counted from 0.
        warmup: steps of the rise.
        progress: the share of the run that is over, 0 to 1.
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return peak * rise * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class Clock:
    """Adds up the seconds spent on steps, however often the run is stopped in between.

    A step that takes more than four times the usual one counts as four, so that time in which the
    process was stopped or the machine slept is not taken from the run. The first steps, which may
    compile, count in full.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._recent: deque[float] = deque(maxlen=REMEMBERED)

    def add(self, duration: float) -> None:
        """Counts one step's seconds."""
        if len(self._recent) >= 3:
            duration = min(duration, LONGEST * median(self._recent))
        self._recent.append(duration)
        self.seconds += duration


class Average:
    """An exponential moving average of a model's weights: what is validated and saved.

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


class Loop:
    """A model in training.

    The loss is read one step late, so that an accelerator always has a step to work on.

    Args:
        model: moved to the device of the crops and trained in place, in float32; only parameters
            that require gradients are trained.
        recipe: the settings.
        crops: the data.
        ranks: this process among those that train together.
        compiled: whether torch compiles the network.
    """

    def __init__(
        self, model: StupidAE, recipe: Recipe, crops: Crops, *, ranks: Ranks, compiled: bool = False
    ) -> None:
        self.recipe, self.crops, self.ranks = recipe, crops, ranks
        self.model = model.to(crops.device).train()
        self.average = Average(self.model, decay=recipe.ema)
        self.optimizer = Optimizer(self.model, recipe)
        self.clock = Clock()
        self.step, self.rate = 0, 0.0
        self._network = _wrapped(self.model, ranks, compiled)
        self._autocast = torch.autocast(
            crops.device.type, torch.bfloat16, enabled=recipe.dtype == "bfloat16"
        )
        self._unread: Tensor | None = None  # loss and gradient norm of the last step
        self._losses, self._counted = 0.0, 0
        self._progress = 0.0

    @property
    def progress(self) -> float:
        """The share of the run that is over, 0 to 1."""
        if self.recipe.steps is not None:
            return min(1.0, self.step / self.recipe.steps)
        return min(1.0, self._progress)

    @property
    def finished(self) -> bool:
        """Whether the run is over."""
        return self.progress >= 1.0

    def advance(self) -> None:
        """One step.

        Raises:
            DivergedError: the last step's loss or gradient was NaN or infinite.
            StaeError: torch cannot compile the network.
        """
        began = time.monotonic()
        batch = self.crops.batch(self.step, rank=self.ranks.rank, processes=self.ranks.processes)
        try:
            loss = self._loss(self._network, batch)
            loss.backward()
        except RuntimeError as error:
            if type(error).__module__.startswith(COMPILER):
                raise _no_compiler(error) from error
            raise
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.rate = learning_rate(
            self.recipe.learning_rate,
            step=self.step,
            warmup=self.recipe.warmup,
            progress=self.progress,
        )
        self.step += 1
        self.optimizer.step(rate=self.rate, steps_done=self.step)
        self.average.update(self.model, step=self.step)
        self.read_loss()
        self._unread = torch.stack([loss.detach(), norm])
        self._count_time(time.monotonic() - began)

    def read_loss(self) -> None:
        """Waits for the loss of the last step and counts it.

        Raises:
            DivergedError: it, or the gradient, was NaN or infinite.
        """
        if self._unread is None:
            return
        loss, norm = self._unread.tolist()
        self._unread = None
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged()
        self._losses += loss
        self._counted += 1

    def take_loss(self) -> float:
        """The mean loss of the steps since the last call, over all processes."""
        self.read_loss()
        mean = self._losses / max(1, self._counted)
        self._losses, self._counted = 0.0, 0
        return self.ranks.mean(mean, self.crops.device)

    @torch.no_grad()
    def check(self) -> None:
        """Checks that the weights and their average are good: a step's loss is of those before it.

        Raises:
            DivergedError: the weights or the loss of either are NaN or infinite.
        """
        self.read_loss()
        batch = self.crops.batch(self.step, rank=self.ranks.rank, processes=self.ranks.processes)
        for network in (self.model, self.average.model):
            finite = all(bool(weights.isfinite().all()) for weights in network.parameters())
            if not (finite and self._loss(network, batch).isfinite()):
                raise self._diverged()

    def _diverged(self) -> DivergedError:
        return DivergedError(f"the loss is no longer finite after {self.step} steps")

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to repeat the same curve."""
        self.read_loss()
        return {
            "step": self.step,
            "seconds": self.clock.seconds,
            "progress": self._progress,
            "losses": (self._losses, self._counted),
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.step, self._progress = int(state["step"]), float(state["progress"])
        self.clock = Clock(float(state["seconds"]))
        losses, counted = state["losses"]
        self._losses, self._counted = float(losses), int(counted)
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _loss(self, network: nn.Module, batch: Tensor) -> Tensor:
        """Plain MSE on [-1, 1], in float32."""
        with self._autocast:
            images = network(batch)
        return (images.float() - batch).square().mean()

    def _count_time(self, duration: float) -> None:
        self.clock.add(duration)
        if self.recipe.minutes is None:
            return
        if self.ranks.processes == 1 or self.step % LOG_STEPS == 0:
            progress = self.clock.seconds / (60 * self.recipe.minutes)
            self._progress = self.ranks.agreed(progress, self.crops.device)


def _no_compiler(error: RuntimeError) -> StaeError:
    reason = str(error).strip().splitlines()[0][:200]
    return StaeError(
        f"torch cannot compile the network: {reason}",
        "install what it needs (on a CPU a C++ compiler, on CUDA also Triton), or omit `--compile`",
    )


def _wrapped(model: StupidAE, ranks: Ranks, compiled: bool) -> nn.Module:
    network = cast(nn.Module, torch.compile(model)) if compiled else model
    if ranks.processes == 1:
        return network
    device = next(model.parameters()).device
    return nn.parallel.DistributedDataParallel(
        network, device_ids=[device] if device.type == "cuda" else None
    )
