"""Rows in parts: which there are, and the threads that compute them."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from stae_cli.codec.cpu.parts import LEAST_ROWS, Parts


@pytest.fixture
def threads(monkeypatch):
    """Sets torch's number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("total", [1, 63, 64, 65, 512, 1024, 1200, 4096, 40000])
@pytest.mark.parametrize("fewer", [False, True])
def test_parts_cover_all_rows_in_order(threads, count, total, fewer):
    threads(count)
    parts = list(Parts(512, fewer=fewer).slices(total))
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == total
    assert all(part.stop - part.start <= 512 for part in parts)
    if not fewer:
        assert all(part.stop - part.start == 512 for part in parts[:-1])
        return
    assert all((part.stop - part.start) % LEAST_ROWS == 0 for part in parts[:-1])
    # The busiest thread has little more than an equal share.
    turns = -(-len(parts) // count)
    assert turns * Parts(512, fewer=fewer).rows_of(total) <= total / count + turns * LEAST_ROWS


def test_each_part_has_a_thread_to_itself(threads):
    threads(3)
    together = threading.Barrier(3, timeout=30)

    def work(part):
        together.wait()  # would not return if fewer threads worked
        inside = torch.get_num_threads(), torch.is_grad_enabled()
        return part, threading.current_thread().name, inside

    found = Parts(1, threaded=True).each(work, iter(range(9)))
    assert [part for part, _, _ in found] == list(range(9))
    assert len({name for _, name, _ in found}) == 3
    assert {inside for _, _, inside in found} == {(1, False)}
    assert torch.get_num_threads() == 3
    assert torch.is_grad_enabled()


def test_a_new_thread_of_the_caller_still_gets_all_of_torchs(threads):
    threads(3)
    Parts(1, threaded=True).each(lambda part: part, range(6))
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [3]


def test_an_exception_comes_once_nobody_works_any_more(threads):
    threads(2)
    working = []

    def work(part):
        if part == 1:
            raise ValueError("part 1")
        working.append(part)
        time.sleep(0.05)
        working.remove(part)

    with pytest.raises(ValueError, match="part 1"):
        Parts(1, threaded=True).each(work, range(100))
    assert working == []
    assert Parts(1, threaded=True).each(str, range(3)) == ["0", "1", "2"]


def test_parts_are_drawn_as_they_are_needed(threads):
    threads(2)
    drawn, done = [], []

    def some():
        for part in range(50):
            drawn.append(part)
            assert len(drawn) - len(done) <= 8
            yield part

    def work(part):
        time.sleep(0.002)
        done.append(part)

    Parts(1, threaded=True).each(work, some())
    assert len(done) == 50


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(threads):
    threads(2)
    Parts(1, threaded=True).each(str, range(4))
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if Parts(1, threaded=True).each(str, range(4)) == list("0123") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_conductor_computes_alone_and_its_parts_do_not(threads):
    threads(3)
    parts, caller = Parts(1, threaded=True), threading.current_thread()
    together = threading.Barrier(3, timeout=30)

    def part_of(_):
        together.wait()
        return threading.get_ident()

    def work():
        here = threading.current_thread()
        assert here is not caller
        assert (torch.get_num_threads(), torch.is_grad_enabled()) == (1, False)
        assert parts.conducted(threading.current_thread) is here
        return parts.each(part_of, range(3))

    assert len(set(parts.conducted(work))) == 3
    assert torch.get_num_threads() == 3
    assert torch.is_grad_enabled()
    assert Parts(1).conducted(threading.current_thread) is caller


def test_a_conductor_passes_errors_on(threads):
    threads(3)
    parts = Parts(1, threaded=True)
    with pytest.raises(ZeroDivisionError):
        parts.conducted(lambda: parts.each(lambda part: 1 // part, range(3)))
    assert parts.conducted(lambda: parts.each(str, range(3))) == ["0", "1", "2"]


@pytest.mark.skipif(os.name == "nt", reason="sends a signal")
def test_ctrl_c_ends_what_a_conductor_does(threads):
    threads(2)
    parts, done = Parts(1, threaded=True), []

    def work(part):
        if part == 5:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        done.append(part)

    with pytest.raises(KeyboardInterrupt):
        parts.conducted(lambda: parts.each(work, range(100_000)))
    ended = len(done)
    assert ended < 5000
    time.sleep(0.1)
    assert len(done) == ended  # nothing goes on
    assert parts.conducted(lambda: parts.each(str, range(3))) == ["0", "1", "2"]


def test_more_callers_than_conductors_all_get_theirs(threads):
    threads(2)
    parts = Parts(1, threaded=True)

    def run(first):
        return parts.conducted(lambda: parts.each(lambda part: part + first, range(20)))

    with ThreadPoolExecutor(9, initializer=torch.set_num_threads, initargs=(2,)) as pool:
        found = list(pool.map(run, range(40)))
    assert found == [list(range(first, first + 20)) for first in range(40)]
