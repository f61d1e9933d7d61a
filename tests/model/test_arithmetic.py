"""Arithmetic settings: the codec's numbers do not depend on the caller's, which stay theirs."""

import pytest
import torch
from torch import backends

from stae_cli import Codec
from stae_cli.model.arithmetic import plain_arithmetic
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
    """Puts back what a test has set."""
    before = precisions()
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
