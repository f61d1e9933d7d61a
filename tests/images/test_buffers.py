"""Buffers: memory comes back when the last view is gone, never sooner, and stays in bounds."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stae_cli.images.buffers import SMALLEST, Buffers

SIDE = 400
MEMORY = pytest.mark.parametrize(
    "allocate",
    [None, bytearray, lambda size: np.empty(size, np.uint8), lambda size: tensor_memory(size)],
    ids=["default", "bytes", "array", "tensor"],
)


def tensor_memory(size):
    """Memory as it is had from torch where it is to be page-locked."""
    torch = pytest.importorskip("torch")
    return torch.empty(size, dtype=torch.uint8).numpy()


def address(array):
    return array.__array_interface__["data"][0]


@MEMORY
def test_memory_is_used_again_when_the_last_view_is_gone(allocate):
    buffers = Buffers(allocate)
    first = buffers.take(SIDE, SIDE)
    view, where = first[5:, ::2].transpose(1, 0, 2), address(first)
    del first
    held = buffers.take(SIDE, SIDE)
    assert not np.shares_memory(held, view)
    del view
    assert address(buffers.take(SIDE, SIDE)) == where


@MEMORY
def test_pictures_that_are_held_share_nothing(allocate):
    buffers = Buffers(allocate)
    held = [buffers.take(SIDE, SIDE) for _ in range(4)]
    for value, picture in enumerate(held):
        picture[:] = value
    assert [np.unique(picture).tolist() for picture in held] == [[0], [1], [2], [3]]


def test_pictures_of_about_the_same_size_share():
    buffers = Buffers()
    where = address(buffers.take(SIDE, SIDE))
    assert address(buffers.take(SIDE - 4, SIDE)) == where


@MEMORY
def test_a_tensor_keeps_the_memory_too(allocate):
    torch = pytest.importorskip("torch")
    buffers = Buffers(allocate)
    tensor = torch.from_numpy(buffers.take(SIDE, SIDE)).fill_(7)
    other = buffers.take(SIDE, SIDE)
    other[:] = 9
    assert (tensor == 7).all()


def test_dear_memory_is_kept_for_small_pictures_too():
    given = []

    def allocate(size):
        given.append(np.zeros(size, np.uint8))
        return given[-1]

    buffers = Buffers(allocate)
    for side in (1, 2, 8, 300):
        first = buffers.take(side, side)
        assert np.shares_memory(first, given[-1])
        where, count = address(first), len(given)
        del first
        assert address(buffers.take(side, side)) == where
        assert len(given) == count


def test_what_waits_stays_within_the_bound():
    size = 3 * SIDE * SIDE
    buffers = Buffers(max_bytes=3 * size)
    arrays = [buffers.take(SIDE, SIDE) for _ in range(9)]
    arrays += [buffers.take(2 * SIDE, SIDE) for _ in range(9)]
    del arrays
    gc.collect()
    assert 0 < buffers._kept <= 3 * size
    kept = sum(len(memory) for group in buffers._free.values() for memory in group)
    assert kept == buffers._kept
    assert buffers.take(1, 1).shape == (1, 1, 3)


def test_small_pictures_are_plain_arrays():
    side = int((SMALLEST / 3) ** 0.5) - 1
    array = Buffers().take(side, side)
    assert array.flags.owndata


def test_threads_never_share_what_is_in_use():
    buffers = Buffers(max_bytes=4 << 20)

    def work(mark):
        generator = np.random.default_rng(mark)
        held = []
        for _ in range(200):
            array = buffers.take(int(generator.integers(300, 420)), 300)
            array[:] = mark
            held.append(array)
            assert len(held) <= 3 or (held.pop(0) == mark).all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
