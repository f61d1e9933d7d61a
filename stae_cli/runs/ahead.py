"""One pack ahead: the next pack is begun on the device before the host waits for the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from stae_cli.runs.tally import Report

Pack = TypeVar("Pack")
Result = TypeVar("Result")


def computed(
    packs: Iterable[Pack],
    begin: Callable[[Pack], Callable[[], Result]],
    report: Report,
    *,
    ahead: bool,
) -> Iterator[tuple[Pack, Result]]:
    """Each pack with what the network makes of it, in order.

    Args:
        packs: they are drawn from here, so that this is booked as reading.
        begin: starts the work on a pack; what it returns waits for it.
        report: of the run; ends it between two packs.
        ahead: whether a pack is begun before the one before it is finished.
    """
    under_way: tuple[Pack, Callable[[], Result]] | None = None
    for pack in report.drawing(packs, "reading"):
        with report.spending("network"):
            begun = pack, begin(pack)
        if under_way is not None:
            yield _finished(under_way, report)
        if ahead:
            under_way = begun
        else:
            yield _finished(begun, report)
    if under_way is not None:
        yield _finished(under_way, report)


def _finished(begun: tuple[Pack, Callable[[], Result]], report: Report) -> tuple[Pack, Result]:
    pack, finish = begun
    with report.spending("network"):
        return pack, finish()
