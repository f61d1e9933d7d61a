"""The benchmark: every network in shuffled rounds, beside the machine's own matrix products.

Comparisons are made within a round (see `stopwatch`), which times every encoder and decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from stae_cli.benchmark.apart import ProcessError, RigApart
from stae_cli.benchmark.contenders import (
    check_against,
    check_installed,
    is_same_network,
    versions,
)
from stae_cli.benchmark.report import (
    OURS,
    Case,
    CaseResult,
    MatmulRate,
    Report,
    Spread,
    Timing,
    describe_machine,
)
from stae_cli.benchmark.rig import Entrant, Rig, reason
from stae_cli.benchmark.stopwatch import (
    Key,
    Round,
    Shape,
    large_shapes,
    matmul_key,
    memory_errors,
    rounds_of,
)
from stae_cli.codec.codec import Codec
from stae_cli.codec.device import dtype_name
from stae_cli.network.flops import check_size
from stae_cli.network.stupid_ae import StupidAE

FAILURES = (RuntimeError, MemoryError, ProcessError)  # of a network that does not run here
LARGEST_DIFFERENCE = {torch.float32: 1e-3}  # of the same network, over the largest number
IN_HALF = 0.1

AnyRig = Rig | RigApart


class _FailureError(Exception):
    """A network fails in a round, after a successful warm-up."""

    def __init__(self, network: str, why: str) -> None:
        super().__init__(network)
        self.network, self.why = network, why


def run(
    model: StupidAE,
    cases: Sequence[Case],
    *,
    weights: str,
    against: Sequence[str] = (),
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    seconds: float = 20.0,
    on_case: Callable[[Case], None] = lambda _case: None,
) -> Report:
    """Times a model's codec, and other networks beside it.

    On the CPU each of several networks has a process of its own, and they work in turn (see
    `apart`). Other devices run what they are given in order, whoever waits for it, and a context
    for each process would take their memory: there all networks share this process.

    Args:
        model: the reference model; `contenders.seeded_model()` will do.
        cases: sizes and batches.
        weights: what the model's weights are called, for the report.
        against: `reference` (the plain module), names from `engines.ENGINES` (which run it),
            `contenders.VARIANTS` (other forms of the codec) and `peers.PEERS`.
        device: where all networks run, as in `Codec`.
        dtype: what they compute in, as in `Codec`.
        seconds: how long the rounds of one case may take; there are at least three.
        on_case: called as each case begins.

    Raises:
        UsageError: a size that the network cannot take, or an unknown network.
        StaeError: a network is not installed, or memory runs out for the codec itself. Other
            networks that do not run in a case are left out of it, with the reason.
        DeviceError: the device is absent.
    """
    check_against(against)
    for case in cases:
        check_size(case.width, case.height, multiple=model.architecture.downsample)
    check_installed(against)
    codec = Codec(model, device=device, dtype=dtype)
    place, computed_in, unfused = codec.device, codec.dtype, codec.unfused
    del codec  # each case makes its own: buffers that one keeps would not count in the next
    names = list(dict.fromkeys((OURS, *against)))
    with _rigs(names, model, place, computed_in) as rigs:
        results = []
        for case in cases:
            on_case(case)
            results.append(_run_case(case, rigs, computed_in, large_shapes(place), seconds))
        peak = rigs[OURS].peak_bytes()
    return Report(
        describe_machine(place),
        model.architecture.describe(),
        weights,
        dtype_name(computed_in),
        unfused,
        peak,
        tuple(results),
        versions(against),
    )


@contextmanager
def _rigs(
    names: Sequence[str], model: StupidAE, device: torch.device, dtype: torch.dtype
) -> Iterator[Mapping[str, AnyRig]]:
    """Where each network runs; one network alone has no neighbours to keep apart."""
    if device.type != "cpu" or len(names) == 1:
        yield dict.fromkeys(names, Rig(model, device, dtype))
        return
    rigs = {name: RigApart(name, model, dtype) for name in names}
    try:
        yield rigs
    finally:
        for each in rigs.values():
            each.end()


def _run_case(
    case: Case,
    rigs: Mapping[str, AnyRig],
    dtype: torch.dtype,
    products: Sequence[Shape],
    seconds: float,
) -> CaseResult:
    with memory_errors(case):
        shapes = rigs[OURS].matmuls(products)
        entrants, left_out = _prepared(case, rigs, dtype)
        rounds, failed = _rounds(entrants, rigs, shapes, seconds)
    fastest = max(shapes, key=lambda each: median(_rates(each, rounds)))
    rates = _rates(fastest, rounds)
    return CaseResult(
        case,
        len(rounds),
        fastest,
        Spread.of(rates),
        tuple(_timing(e, case, rounds, rates) for e in entrants if e.network not in failed),
        left_out | failed,
        tuple(MatmulRate(each, Spread.of(_rates(each, rounds))) for each in shapes),
    )


def _prepared(
    case: Case, rigs: Mapping[str, AnyRig], dtype: torch.dtype
) -> tuple[list[Entrant], dict[str, str]]:
    """The stages of all networks that run and compute what they should, and why others do not."""
    for rig in dict.fromkeys(rigs.values()):
        rig.begin(case)
    entrants: list[Entrant] = []
    left_out: dict[str, str] = {}
    outputs: Sequence[NDArray[np.float32]] = ()
    compared = any(name != OURS and is_same_network(name) for name in rigs)
    for name, rig in rigs.items():
        try:
            found = rig.prepare(name)
            if name == OURS:
                outputs = rig.outputs(name) if compared else ()
            elif is_same_network(name):
                _check_outputs(rig.outputs(name), outputs, dtype)
        except FAILURES as error:
            if name == OURS:
                raise
            left_out[name] = reason(error)
        else:
            entrants += found
    return entrants, left_out


def _check_outputs(
    found: Sequence[NDArray[np.float32]],
    ours: Sequence[NDArray[np.float32]],
    dtype: torch.dtype,
) -> None:
    """Compares a form of the same network with the codec: what computes something else is no match.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    for what, theirs, expected in zip(("latents", "pixels"), found, ours, strict=True):
        if not np.isfinite(theirs).all():
            raise RuntimeError(f"its {what} are not finite")
        apart = float(np.abs(theirs - expected).max() / np.abs(expected).max())
        if apart > LARGEST_DIFFERENCE.get(dtype, IN_HALF):
            raise RuntimeError(f"its {what} differ from those of stae by {apart:.1%}")


def _rounds(
    entrants: Sequence[Entrant],
    rigs: Mapping[str, AnyRig],
    shapes: Sequence[Shape],
    seconds: float,
) -> tuple[list[Round], dict[str, str]]:
    """Rounds of the networks that succeed in all of them, and why others failed."""
    failed: dict[str, str] = {}
    matmuls = [matmul_key(shape) for shape in shapes]
    while True:
        running = [each for each in entrants if each.network not in failed]
        tasks: dict[Key, Callable[[], float]] = {
            each.key: partial(_sample, each, rigs[each.network]) for each in running
        }
        tasks |= {key: partial(rigs[OURS].sample, key) for key in matmuls}
        try:
            return rounds_of(tasks, seconds), failed
        except _FailureError as failure:
            failed[failure.network] = failure.why


def _sample(entrant: Entrant, rig: AnyRig) -> float:
    """Seconds per call.

    Raises:
        _FailureError: the call fails, and the network is not the codec.
    """
    try:
        return rig.sample(entrant.key)
    except FAILURES as error:
        if entrant.network == OURS:
            raise
        raise _FailureError(entrant.network, reason(error)) from error


def _rates(shape: Shape, rounds: Sequence[Round]) -> list[float]:
    """Operations per second in 10^12, in each round."""
    return [2 * math.prod(shape) / times[matmul_key(shape)] / 1e12 for times in rounds]


def _timing(
    entrant: Entrant, case: Case, rounds: Sequence[Round], rates: Sequence[float]
) -> Timing:
    times = [each[entrant.key] for each in rounds]
    ours = [each[OURS, entrant.stage] for each in rounds]
    speeds = [entrant.flops / time / 1e12 for time in times]
    return Timing(
        entrant.network,
        entrant.stage,
        milliseconds=Spread.of([time * 1000 for time in times]),
        images_per_second=Spread.of([case.batch / time for time in times]),
        tflops=Spread.of(speeds).median,
        share=Spread.of([speed / rate for speed, rate in zip(speeds, rates, strict=True)]),
        slowdown=Spread.of([time / base for time, base in zip(times, ours, strict=True)]),
        memory_bytes=entrant.memory_bytes,
    )
