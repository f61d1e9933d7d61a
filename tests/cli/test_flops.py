"""`stae flops` as users run it: counts without weights, beside what is published."""

import sys

import pytest


def test_the_table_holds_our_figures_and_the_published_ones(stae):
    ran = stae("flops")
    assert ran.code == 0
    assert ran.err == ""
    for word in ("115.16 G", "322.59 G", "124.18 G", "318.52 G", "3,521,552", "calflops"):
        assert word in ran.out
    assert "…" not in ran.out


def test_published_figures_are_shown_for_their_size_only(stae):
    ran = stae("flops", "--size", "512")
    assert "124.18" not in ran.out
    assert "calflops" not in ran.out


def test_layers_sum_to_their_stage(stae):
    facts = stae("flops", "--size", "64x32", "--layers", "--json").json["networks"][0]
    assert (facts["width"], facts["height"]) == (64, 32)
    assert facts["published"] is None
    for stage in facts["stages"]:
        for kind, flops in stage["flops"].items():
            assert sum(layer["flops"][kind] for layer in stage["layers"]) == flops
        assert sum(layer["parameters"] for layer in stage["layers"]) == stage["parameters"]


def test_layers_are_listed_on_request(stae):
    path = "decoder.0.nerf.0.param_gen"
    assert path not in stae("flops", "--size", "64").out
    assert path in stae("flops", "--size", "64", "--layers").out


def test_json_without_layers_is_short(stae):
    facts = stae("flops", "--json").json["networks"][0]
    assert facts["network"] == "f8c16"
    assert all("layers" not in stage for stage in facts["stages"])
    assert facts["published"]["encoder_flops"] == 124.18e9


def test_sdxl_stands_beside_ours(stae):
    diffusers = pytest.importorskip("diffusers", exc_type=ImportError)
    assert diffusers.AutoencoderKL
    ran = stae("flops", "--against", "sdxl, taesd")
    for word in ("4.879 T", "10.470 T", "4.340 T", "sdxl", "taesd"):
        assert word in ran.out
    assert "…" not in ran.out


def test_without_diffusers_the_extra_is_named(stae, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    stae("flops", "--against", "sdxl").assert_fails(1, "pip install 'stae[peers]'")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "1001"], ["not a multiple of 8"]),
        (["--size", "64x"], ["malformed size `64x`"]),
        (["--against", "reference"], ["unknown network `reference`", "sdxl, taesd"]),
    ],
    ids=["multiple", "malformed", "unknown"],
)
def test_what_makes_no_sense_is_refused(stae, arguments, words):
    stae("flops", *arguments).assert_fails(2, *words)
