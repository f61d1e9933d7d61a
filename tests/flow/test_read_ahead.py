"""Reading ahead and writing behind: order, bounds, errors, and a clean end."""

import threading
import time

import pytest

from stae_cli.flow.read_ahead import read_ahead
from stae_cli.flow.write_behind import ITEMS_BEHIND, WriteBehind


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_results_come_in_order(threads):
    def read(item, reserve):
        if item % 3:
            reserve(10)
        time.sleep(0.001 * (item % 5))
        return item

    items = range(200)
    assert list(read_ahead(items, read, threads=threads, max_bytes=25)) == list(items)


def test_what_is_held_stays_within_the_bound():
    lock, held, most = threading.Lock(), 0, 0

    def read(item, reserve):
        nonlocal held, most
        reserve(100)
        with lock:
            held += 100
            most = max(most, held)
        return item

    for _ in read_ahead(range(300), read, threads=4, max_bytes=450):
        with lock:
            held -= 100
    # What is delivered is released just before it is counted here: one item of slack a thread.
    assert most <= 450 + 4 * 100


def test_an_item_larger_than_the_bound_goes_alone():
    def read(item, reserve):
        reserve(item)
        return item

    sizes = [5, 1000, 5, 1000, 5]
    assert list(read_ahead(sizes, read, threads=3, max_bytes=10)) == sizes


@pytest.mark.timeout(30)
def test_a_slow_large_item_passes_what_later_ones_hold():
    """Nothing of theirs is given back before it is delivered."""
    later = threading.Event()

    def read(item, reserve):
        if item == 0:
            assert later.wait(10)
        reserve(100 if item == 0 else 20)
        if item == 1:
            later.set()
        return item

    assert list(read_ahead(range(50), read, threads=4, max_bytes=100)) == list(range(50))


@pytest.mark.timeout(60)
def test_many_threads_that_wait_for_each_other():
    start = threading.Event()

    def read(item, reserve):
        if item == 0:
            assert start.wait(10)
        reserve(10)
        return item

    timer = threading.Timer(0.5, start.set)
    timer.start()
    assert list(read_ahead(range(2000), read, threads=400, max_bytes=6000)) == list(range(2000))


def test_an_error_is_raised_in_its_place_and_the_threads_end():
    def read(item, reserve):
        reserve(10)
        if item == 5:
            raise ValueError("five")
        return item

    results = []
    with pytest.raises(ValueError, match="five"):
        results.extend(read_ahead(range(100), read, threads=3, max_bytes=30))
    assert not [t for t in threading.enumerate() if t.name.startswith("read")]


def test_stopping_early_ends_the_threads():
    def read(item, reserve):
        reserve(10)
        return item

    reader = read_ahead(range(1000), read, threads=3, max_bytes=30)
    assert next(reader) == 0
    reader.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("read")]


def test_writes_are_all_done_and_counted():
    done, counted = [], []
    with WriteBehind(threads=3, max_bytes=50, on_written=counted.append) as writer:
        for number in range(100):
            writer.submit(20, lambda number=number: done.append(number) or number)
    assert sorted(done) == sorted(counted) == list(range(100))


def test_writes_hold_a_bounded_number_of_bytes():
    gate, waiting = threading.Event(), []
    with WriteBehind(threads=1, max_bytes=50, on_written=lambda _: None) as writer:

        def fill():
            for _ in range(5):
                writer.submit(20, lambda: gate.wait(10) and 1)
                waiting.append(1)

        filler = threading.Thread(target=fill)
        filler.start()
        time.sleep(0.2)
        assert len(waiting) == 2
        gate.set()
        filler.join()


def test_a_failed_write_is_raised():
    def fail():
        raise OSError("full")

    def run():
        with WriteBehind(threads=2, max_bytes=50, on_written=lambda _: None) as writer:
            writer.submit(1, fail)
            writer.drain()

    with pytest.raises(OSError, match="full"):
        run()


def test_tiny_writes_wait_in_bounded_number():
    """Of tiny items, what is around them is most of the memory: their bytes alone bound nothing."""
    release, most = threading.Event(), 0
    with WriteBehind(threads=1, max_bytes=1 << 30, on_written=lambda _: None) as writer:
        threading.Timer(0.2, release.set).start()
        for _ in range(2000):
            writer.submit(1, release.wait)
            most = max(most, len(writer._pending))
    assert most <= ITEMS_BEHIND
