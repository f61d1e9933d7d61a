"""What the parts of `stages.py` measure where, and how they time it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from agreement import FORMS
from record import first_line
from torch import Tensor

from stae_cli import Codec, StupidAE
from stae_cli.benchmark.contenders import REFERENCE, Contender, contender
from stae_cli.benchmark.inputs import Inputs
from stae_cli.benchmark.matmul import Matmul
from stae_cli.benchmark.report import Case, Spread
from stae_cli.benchmark.rounds import rounds_of
from stae_cli.benchmark.stopwatch import Stopwatch

Function = Callable[[Tensor], object]


@dataclass(frozen=True)
class Subject:
    """A network on a device in one case; `seconds` are for the rounds of a part."""

    model: StupidAE
    device: torch.device
    dtype: torch.dtype
    case: Case
    seconds: float
    failures: dict[str, str] = field(default_factory=dict)  # what did not run, and why

    def inputs(self) -> Inputs:
        return Inputs(self.case, device=self.device, dtype=self.dtype)

    def codec(self) -> Codec:
        return Codec(self.model, device=self.device, dtype=self.dtype)

    def of_each_call(
        self, part: str, measure: Callable[[Function, Sequence[Tensor]], dict]
    ) -> dict:
        """What `measure` says of encoding and decoding, by every form and the plain module."""
        found = {}
        codec = self.codec()
        for name in (*FORMS, REFERENCE):
            try:
                calls = calls_of(contender(name, codec, self.model), self.inputs())
                for stage, (function, given) in calls.items():
                    found[f"{name} {stage}"] = measure(function, given)
            except Exception as error:  # noqa: BLE001  # a driver's or a compiler's; others may do
                self.failures[f"{part} of {name}"] = first_line(error)
        return found

    def timed(
        self,
        tasks: dict[str, tuple[Function, Sequence[Tensor]]],
        matmuls: Sequence[Matmul] = (),
        *,
        seconds: float | None = None,
    ) -> dict[str, Spread]:
        """Milliseconds of each in shuffled rounds; those that do not run are left out."""
        samples = {str(each.shape): each.sample for each in matmuls}
        for name, (function, given) in tasks.items():
            watch = Stopwatch(self.device, function, given)
            try:
                calls = watch.warm_up().calls
            except Exception as error:  # noqa: BLE001  # Triton's are no RuntimeError; others may do
                self.failures[name] = first_line(error)
                continue
            samples[name] = lambda watch=watch, calls=calls: watch.sample(calls)
        rounds = rounds_of(samples, self.seconds if seconds is None else seconds)
        return {name: Spread.of([1000 * times[name] for times in rounds]) for name in samples}


def calls_of(network: Contender, inputs: Inputs) -> dict[str, tuple[Function, list[Tensor]]]:
    pictures = inputs.pixels() if network.takes_pixels else inputs.images()
    latents = inputs.latents(network.latent_channels, network.factor)
    return {"encode": (network.encode, pictures), "decode": (network.decode, latents)}
