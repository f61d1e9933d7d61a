"""A rig: networks of one process, warmed up, and samples of the time that they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stae_cli.benchmark.contenders import Contender, Inputs, contender
from stae_cli.benchmark.report import Case, host_peak_bytes
from stae_cli.benchmark.stopwatch import Key, Matmul, Shape, Stopwatch, matmul_key, matmuls_of
from stae_cli.codec.device import is_memory_error
from stae_cli.network.stupid_ae import SEED, StupidAE


@dataclass(frozen=True)
class Entrant:
    """One stage of one network in one case, warmed up.

    `memory_bytes` is that of a call on the device, None where torch does not report it.
    """

    network: str
    stage: str
    flops: int  # of a whole batch
    memory_bytes: int | None

    @property
    def key(self) -> tuple[str, str]:
        return self.network, self.stage


class Rig:
    """Networks on a device, of one case at a time, and matrix products.

    Args:
        model: the reference model, which the codec and its other forms are made from.
        device: where they run.
        dtype: what they compute in.
    """

    def __init__(self, model: StupidAE, device: torch.device, dtype: torch.dtype) -> None:
        self._model, self._device, self._dtype = model, device, dtype
        self._matmuls: list[Matmul] = []
        self._products: dict[Key, Callable[[], float]] = {}
        self._samples: dict[Key, Callable[[], float]] = {}
        self._networks: dict[str, Contender] = {}

    def matmuls(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Warms up matrix products, once, and says which; `sample` takes their `matmul_key`."""
        self._matmuls = self._matmuls or matmuls_of(shapes, self._device, self._dtype)
        self._products = {matmul_key(each.shape): each.sample for each in self._matmuls}
        return [each.shape for each in self._matmuls]

    def begin(self, case: Case) -> None:
        """Forgets the networks of the case before."""
        self._samples, self._networks = {}, {}
        self._inputs: dict[torch.dtype, Inputs] = {}
        self._case = case

    def prepare(self, name: str) -> list[Entrant]:
        """Builds a network for this case and warms it up; `sample` takes the keys of its entrants.

        Raises:
            RuntimeError: it does not run here, or memory ran out.
        """
        try:
            with _on_even_terms():
                network = contender(name, self._model, self._device, self._dtype)
                entrants = list(self._warmed_up(network))
        finally:
            if self._device.type == "cuda":
                torch.cuda.empty_cache()  # what this network has cached, the next may need
        self._networks[name] = network
        return entrants

    def sample(self, key: Key) -> float:
        """Seconds per call.

        Raises:
            RuntimeError: it does not run, or memory ran out.
        """
        with _on_even_terms():
            return (self._samples.get(key) or self._products[key])()

    def outputs(self, name: str) -> list[NDArray[np.float32]]:
        """A network's latents and pixels, clamped, of the first of some seeded pictures."""
        network, case = self._networks[name], self._case
        height, width = case.height // network.factor, case.width // network.factor
        image = self._drawn((case.batch, 3, case.height, case.width), network)
        latents = self._drawn((case.batch, network.latent_channels, height, width), network)
        with _on_even_terms():
            return [_first(network.encode(image)), _first(network.decode(latents)).clip(-1, 1)]

    def peak_bytes(self) -> int | None:
        """The most memory that this process has used."""
        return host_peak_bytes()

    def _drawn(self, shape: tuple[int, ...], network: Contender) -> Tensor:
        """The same numbers for every network, whatever it takes: in [-1, 1], on the device."""
        generator = torch.Generator().manual_seed(SEED)
        drawn = torch.empty(shape).uniform_(-1, 1, generator=generator)
        return drawn.to(self._device, self._dtype).to(network.dtype)

    def _warmed_up(self, network: Contender) -> Iterator[Entrant]:
        cost = network.cost(self._case.width, self._case.height)
        if network.dtype not in self._inputs:  # what one network gets, others may share
            made = Inputs(self._case, device=self._device, dtype=network.dtype)
            self._inputs[network.dtype] = made
        inputs = self._inputs[network.dtype]
        pictures = inputs.pixels() if network.takes_pixels else inputs.images()
        latents = inputs.latents(network.latent_channels, network.factor)
        for stage, function, given in (
            (cost.encoder, network.encode, pictures),
            (cost.decoder, network.decode, latents),
        ):
            watch = Stopwatch(self._device, function, given)
            warm_up = watch.warm_up(compiles=network.compiles)
            flops = stage.flops.total * self._case.batch
            entrant = Entrant(network.name, stage.name, flops, warm_up.memory_bytes)
            self._samples[entrant.key] = partial(watch.sample, warm_up.calls)
            yield entrant


def reason(error: Exception) -> str:
    """Why something does not run, in a few words, for a table."""
    if is_memory_error(error):
        return "out of memory"
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def _on_even_terms() -> Iterator[None]:
    """The others too get full float32 convolutions, as the codec has them."""
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def _first(outputs: object) -> NDArray[np.float32]:
    """The first picture of a batch, from torch or from an engine."""
    whole = outputs if isinstance(outputs, Tensor) else torch.from_numpy(outputs)
    return whole[0].float().cpu().numpy()
