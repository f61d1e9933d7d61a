"""Arithmetic settings: the codec's numbers do not depend on the caller's, which stay theirs."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import backends

from stae_cli import Codec
from stae_cli.codec.device import plain_arithmetic
from stae_cli.errors import InputError
from tests.seeded import TINY, seeded_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
OWNERS = [
    backends.cuda.matmul,
    backends.cudnn,
    backends.cudnn.conv,
    backends.mkldnn,
    backends.mkldnn.matmul,
    backends.mkldnn.conv,
]


def precisions():
    return [owner.fp32_precision for owner in OWNERS]


@pytest.fixture(autouse=True)
def torchs_own():
    """Begins with nothing set, whatever other tests have done, and puts that back afterwards."""
    before = precisions()
    for owner in (backends, *OWNERS):
        owner.fp32_precision = "none"
    yield
    backends.fp32_precision = "none"
    for owner, value in zip(OWNERS, before, strict=True):
        owner.fp32_precision = value


def set_by_the_new_names():
    backends.cuda.matmul.fp32_precision = backends.mkldnn.matmul.fp32_precision = "tf32"


def set_for_everything():
    backends.fp32_precision = "tf32"


def set_by_the_old_name():
    torch.set_float32_matmul_precision("high")


def set_nothing():
    pass


@pytest.mark.parametrize(
    "choose", [set_nothing, set_by_the_old_name, set_by_the_new_names, set_for_everything]
)
def test_the_callers_precision_is_neither_used_nor_changed(choose):
    codec = Codec(seeded_model(TINY), device="cpu")
    images = torch.rand(1, 3, 16, 24)
    expected = codec.encode(images)
    try:
        choose()
        before = precisions()
        assert torch.equal(codec.encode(images), expected)
        codec.decode(expected)
        for device in (CPU, CUDA):
            with plain_arithmetic(device):
                used = precisions()[0 if device is CUDA else 4]
                assert used in ("ieee", "none")
        assert precisions() == before
        if choose is set_for_everything:  # what was inherited still is
            backends.fp32_precision = "none"
            assert backends.cuda.matmul.fp32_precision == "none"
    finally:
        if choose is set_by_the_old_name:
            torch.set_float32_matmul_precision("highest")


def test_shortcuts_of_half_precision_are_off_inside(monkeypatch):
    names = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    before = [getattr(backends.cuda.matmul, name) for name in names]
    monkeypatch.setattr(backends.cudnn, "benchmark", True)
    with plain_arithmetic(CUDA):
        assert not any(getattr(backends.cuda.matmul, name) for name in names)
        assert not backends.cudnn.benchmark
    assert [getattr(backends.cuda.matmul, name) for name in names] == before
    assert backends.cudnn.benchmark


class Visit(threading.Thread):
    """A thread that goes inside when it is started, and leaves when it is told to."""

    def __init__(self, device):
        super().__init__()
        self._device = device
        self.inside, self._leave = threading.Event(), threading.Event()

    def run(self):
        with plain_arithmetic(self._device):
            self.inside.set()
            self._leave.wait(60)

    def enter(self):
        self.start()
        assert self.inside.wait(60)
        return self

    def leave(self):
        self._leave.set()
        self.join()


@pytest.mark.parametrize("first_in_is_last_out", [False, True])
@pytest.mark.parametrize(("device", "owner"), [(CPU, backends.mkldnn), (CUDA, backends.cuda)])
def test_it_is_plain_until_the_last_thread_is_out(device, owner, first_in_is_last_out):
    set_by_the_new_names()
    before = precisions()
    visits = [Visit(device).enter(), Visit(device).enter()]
    for visit in reversed(visits) if first_in_is_last_out else visits:
        assert owner.matmul.fp32_precision == "ieee"
        visit.leave()
    assert precisions() == before


def test_the_settings_of_devices_are_apart():
    set_by_the_new_names()
    before = precisions()
    visit = Visit(CUDA).enter()
    with plain_arithmetic(CPU):
        pass
    assert backends.mkldnn.matmul.fp32_precision == "tf32"
    assert backends.cuda.matmul.fp32_precision == "ieee"
    visit.leave()
    assert precisions() == before


def test_many_threads_find_it_plain_and_leave_it_as_it_was():
    set_by_the_new_names()
    before, together = precisions(), threading.Barrier(4)

    def run(_index):
        together.wait()
        for _ in range(300):
            with plain_arithmetic(CUDA):
                assert backends.cuda.matmul.fp32_precision == "ieee"

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert precisions() == before


def test_it_may_be_entered_inside_and_left_by_an_error():
    set_by_the_new_names()
    before = precisions()

    def fail():
        with plain_arithmetic(CPU), plain_arithmetic(CPU):
            raise ValueError("inside")

    with plain_arithmetic(CPU):
        with pytest.raises(ValueError, match="inside"):
            fail()
        assert backends.mkldnn.matmul.fp32_precision == "ieee"
    assert precisions() == before


def test_autocast_is_each_threads_own():
    visit = Visit(CPU).enter()
    with torch.autocast("cpu", torch.bfloat16):
        with plain_arithmetic(CPU):
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")
        visit.leave()
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("what", ["pieces", "levels_of"])
def test_a_generator_that_is_not_finished_holds_nothing_open(what):
    """Its caller computes with the caller's own settings between two pieces."""
    codec = Codec(seeded_model(TINY), device="cpu", batch_patches=100)
    set_by_the_new_names()
    before = precisions()
    pieces = getattr(codec.tiler, what)([torch.zeros(16, 20, 20)])
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            next(pieces)
            assert precisions() == before
            assert torch.is_autocast_enabled("cpu")


def test_an_input_error_leaves_nothing_open():
    codec = Codec(seeded_model(TINY), device="cpu")
    set_by_the_new_names()
    before = precisions()
    with pytest.raises(InputError):
        codec.encode([torch.zeros(3, 16, 16), torch.zeros(3, 15, 16)])
    assert precisions() == before
