"""The pipeline of a run: items are read ahead, packed, computed and written behind."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Generic, TypeVar

from stae_cli.flow.read_ahead import READ_AHEAD_BYTES, Reserve, read_ahead
from stae_cli.flow.write_behind import WriteBehind
from stae_cli.latents.writer import Written
from stae_cli.runs.tally import Tally, problem_or
from stae_cli.storage.entry import Problem

if TYPE_CHECKING:
    from stae_cli.codec.pixel_codec import PixelCodec

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")
Pack = TypeVar("Pack")

STAYS = "; the latent that was there stays"

_log = logging.getLogger(__name__)


class Pipeline(ABC, Generic[Item, Loaded, Result]):
    """Reads, packs, computes and writes in one process; subclasses say how.

    Files are read and written by threads while the network runs. Items are computed and saved in
    their order; what became of each is counted in the tally.

    Args:
        codec: runs the network; its `batch_patches` bounds a pack.
        tally: of the run; ends it between two packs.
        threads: for reading, and as many for writing.
    """

    read_bytes = READ_AHEAD_BYTES  # bound on what is read and not yet computed
    write_bytes = 256 << 20  # bound on what waits to be written

    def __init__(self, codec: PixelCodec, tally: Tally, *, threads: int) -> None:
        self.codec, self.tally, self.threads = codec, tally, threads
        self.writer: WriteBehind[Written] = WriteBehind(
            threads=threads,
            max_bytes=self.write_bytes,
            on_written=lambda written: tally.written(written.size, written.outputs),
        )

    @abstractmethod
    def label(self, item: Item) -> str:
        """How failures name an item."""

    @abstractmethod
    def read(self, item: Item, reserve: Reserve) -> Loaded | None:
        """Reads one item, in a thread; None if its output is done already.

        Raises:
            InputError: it cannot be used; the run goes on.
            OSError: it cannot be read; the run goes on.
        """

    @abstractmethod
    def patches(self, loaded: Loaded) -> int:
        """How many patches it adds to a pack."""

    @abstractmethod
    def begin(self, pack: Sequence[Loaded]) -> Callable[[], Sequence[Result]]:
        """Starts the network on a pack; the returned function waits for the results."""

    @abstractmethod
    def save(self, item: Item, loaded: Loaded, result: Result) -> None:
        """Hands one result to the writer, or calls `fail`."""

    def skipped(self, item: Item) -> None:
        """Called for an item whose output is done already."""

    def failed(self, item: Item) -> bool:
        """Called for an item that gives no output; whether an earlier output stays."""
        return False

    def run(self, items: Iterable[Item | Problem]) -> None:
        """Does the items; a problem among them is counted in its place."""
        tally, writer = self.tally, self.writer
        reading = read_ahead(items, self._read, threads=self.threads, max_bytes=self.read_bytes)
        with writer, closing(reading) as results:
            packs = packed(
                self._loaded(results),
                patches=lambda pair: self.patches(pair[1]),
                limit=self.codec.batch_patches,
            )
            for pairs, made in computed(packs, self._begin, tally, ahead=self.codec.runs_beside):
                with tally.spending("writing"):
                    for (item, loaded), result in zip(pairs, made, strict=True):
                        self.save(item, loaded, result)
            with tally.spending("writing"):
                writer.drain()

    def fail(self, item: Item, reason: str) -> None:
        """Counts an item that gives no output."""
        self._fail(item, Problem(self.label(item), reason))

    def _fail(self, item: Item, problem: Problem) -> None:
        reason = f"{problem.reason}{STAYS}" if self.failed(item) else problem.reason
        self.tally.fail(Problem(problem.key, reason))

    def _read(
        self, item: Item | Problem, reserve: Reserve
    ) -> tuple[Item | Problem, Loaded | Problem | None]:
        if isinstance(item, Problem):
            return item, None
        return item, problem_or(self.label(item), lambda: self.read(item, reserve))

    def _loaded(
        self, results: Iterable[tuple[Item | Problem, Loaded | Problem | None]]
    ) -> Iterator[tuple[Item, Loaded]]:
        """The items that are to be computed; all others are counted."""
        for item, loaded in results:
            if self.tally.interrupted:
                return
            if isinstance(item, Problem):
                self.tally.fail(item)
            elif isinstance(loaded, Problem):
                self._fail(item, loaded)
            elif loaded is None:
                self.tally.skip()
                self.skipped(item)
            else:
                yield item, loaded

    def _begin(self, pairs: Sequence[tuple[Item, Loaded]]) -> Callable[[], Sequence[Result]]:
        _log.debug("computing a pack of %d", len(pairs))
        return self.begin([loaded for _, loaded in pairs])


def packed(
    items: Iterable[Item], *, patches: Callable[[Item], int], limit: int
) -> Iterator[list[Item]]:
    """Consecutive items whose patches sum to at most `limit`; a larger item is alone."""
    held: list[Item] = []
    total = 0
    for item in items:
        size = patches(item)
        if held and total + size > limit:
            yield held
            held, total = [], 0
        held.append(item)
        total += size
    if held:
        yield held


def computed(
    packs: Iterable[Pack],
    begin: Callable[[Pack], Callable[[], Result]],
    tally: Tally,
    *,
    ahead: bool,
) -> Iterator[tuple[Pack, Result]]:
    """Each pack with what the network makes of it, in order.

    Args:
        packs: drawing them is booked as reading.
        begin: starts the work on a pack; what it returns waits for it.
        tally: of the run; ends it between two packs.
        ahead: whether a pack is begun before the one before it is finished.
    """
    under_way: tuple[Pack, Callable[[], Result]] | None = None
    for pack in tally.drawing(packs, "reading"):
        with tally.spending("network"):
            begun = pack, begin(pack)
        if under_way is not None:
            yield _finished(under_way, tally)
        if ahead:
            under_way = begun
        else:
            yield _finished(begun, tally)
    if under_way is not None:
        yield _finished(under_way, tally)


def _finished(begun: tuple[Pack, Callable[[], Result]], tally: Tally) -> tuple[Pack, Result]:
    pack, finish = begun
    with tally.spending("network"):
        return pack, finish()
