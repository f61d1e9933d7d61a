"""Several processes on one device: what starting takes is no part of their speed."""

import pytest

from tests.benchmarks.scripts import script


@pytest.fixture
def sharing(monkeypatch):
    module = script("sharing")
    monkeypatch.setattr(module, "KINDS", {"large": (8, 32), "small": (40, 16)})
    return module


def test_images_per_second_without_the_start(sharing, monkeypatch):
    seen, records = [], []

    def encode(command, source, target, *options, timeout):
        images = len(list(source.rglob("*.jpg")))
        devices = options[options.index("--device") + 1]
        seen.append((command, source.name, images, devices))
        assert 0 < timeout <= 100
        return {"done": images, "seconds": 3 + images / (100 * len(devices.split(",")))}

    monkeypatch.setattr(sharing, "stae_json", encode)
    failures = sharing.measure(
        "cuda", (1, 2), within=100, record=lambda name, found: records.append((name, found))
    )
    assert failures == {}
    assert [name for name, _ in records] == ["sharing-cuda"] * 2
    first, second = records[-1][1]["runs"]
    assert [run["devices"] for run in (first, second)] == ["cuda:0", "cuda:0,cuda:0"]
    assert first["small"]["images_per_second"] == pytest.approx(100)
    assert second["large"]["images_per_second"] == pytest.approx(200)
    assert seen[:3] == [
        ("encode", "first", 16, "cuda:0"),
        ("encode", "large", 32, "cuda:0"),
        ("encode", "small", 160, "cuda:0"),
    ]


def test_what_fails_is_told(sharing, monkeypatch):
    def encode(*_given, timeout):
        raise sharing.CommandError("`stae encode` ended with 1: no device")

    monkeypatch.setattr(sharing, "stae_json", encode)
    records = []
    failures = sharing.measure("cpu", (2,), record=lambda _, found: records.append(found))
    assert failures == {"2 processes": "`stae encode` ended with 1: no device"}
    assert records[-1]["failures"] == failures
