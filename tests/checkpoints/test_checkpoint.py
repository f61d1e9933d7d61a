"""Checkpoint files: what is read, what is refused and how, and the fingerprint."""

import hashlib
import os
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from stae_cli import StupidAE
from stae_cli.checkpoints.checkpoint import (
    find_by_fingerprint,
    load_checkpoint,
    load_model,
    read_checkpoint,
    write_checkpoint,
)
from stae_cli.checkpoints.tensor_files import fingerprint
from stae_cli.errors import CheckpointError
from stae_cli.network.architecture import F8C16, PRESETS, parse_architecture
from stae_cli.storage.temp_files import temporary_name
from tests.seeded import TINY, seeded_tensors, tiny_like


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.fixture
def tensors():
    return seeded_tensors(TINY)


def saved(path, tensors, metadata=None):
    save_file(tensors, path, metadata=metadata or {"architecture": TINY.describe()})
    return path


def test_fingerprint_is_the_documented_sha256():
    tensors = {"b": torch.arange(6, dtype=torch.float16).view(2, 3), "a": torch.ones(1)}
    expected = hashlib.sha256(
        b"a\0F32\x001\n" + tensors["a"].numpy().tobytes()
        + b"b\0F16\x002,3\n" + tensors["b"].numpy().tobytes()
    )  # fmt: skip
    assert fingerprint(tensors) == expected.hexdigest()


def test_pickle_and_safetensors_of_the_same_tensors_agree(tmp_path):
    tensors = seeded_tensors()
    torch.save(tensors, tmp_path / "a.pt")
    save_file(tensors, tmp_path / "a.safetensors")
    one = read_checkpoint(tmp_path / "a.pt", name="a")
    two = read_checkpoint(tmp_path / "a.safetensors", name="b")
    assert one.fingerprint == two.fingerprint
    assert one.architecture == two.architecture == F8C16


def test_from_checkpoint_gives_a_trainable_float32_model():
    model = StupidAE.from_checkpoint("builtin")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in model.parameters())


def test_any_described_architecture_round_trips(tmp_path, tensors):
    write_checkpoint(tmp_path / "t.safetensors", tensors, TINY, {"note": "x"})
    read = read_checkpoint(tmp_path / "t.safetensors", name="t")
    assert (read.architecture, read.metadata["note"]) == (TINY, "x")
    assert all(torch.equal(read.tensors[name], tensors[name]) for name in tensors)
    assert parse_architecture(F8C16.describe()) is F8C16


@pytest.mark.parametrize(
    "text",
    [
        "f9",
        "{}",
        "[]",
        '{"name":"x","width":0}',
        '{"name":"x","w":1}',
        '{"name":"f8c16"}',
        '{"name":"x","decoder_kernel":5}',
        '{"name":"x","head":"magic"}',
        '{"name":"x","head":1}',
        '{"name":"x","second":{"patch":4}}',
        '{"name":"x","second":[4,64]}',
        '{"name":"x","second":{"latent_channels":64,"patch":0}}',
    ],
)
def test_unknown_architectures_are_refused(tmp_path, tensors, text):
    with pytest.raises(CheckpointError):
        read_checkpoint(saved(tmp_path / "t.safetensors", tensors, {"architecture": text}), name="")


def test_wrong_tensors_are_named(tmp_path, tensors):
    del tensors["decoder.0.last.bias"]
    tensors["extra"] = torch.ones(1)
    tensors["decoder.0.positions"] = torch.ones(1, 64, 3)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(saved(tmp_path / "t.safetensors", tensors), name="t")
    assert "missing decoder.0.last.bias" in str(caught.value)
    assert "unexpected extra" in str(caught.value)
    assert "decoder.0.positions (1, 64, 3) instead of (1, 64, 8)" in str(caught.value)


def test_nan_weights_and_integers_are_refused(tmp_path, tensors):
    broken = {**tensors, "decoder.0.last.bias": torch.full((3,), torch.nan)}
    with pytest.raises(CheckpointError, match=r"NaN.*decoder\.0\.last\.bias"):
        read_checkpoint(saved(tmp_path / "a.safetensors", broken), name="")
    integer = {**tensors, "decoder.0.last.bias": torch.ones(3, dtype=torch.int32)}
    with pytest.raises(CheckpointError, match="not a float"):
        read_checkpoint(saved(tmp_path / "b.safetensors", integer), name="")


def test_a_pickle_that_would_run_code_is_refused_without_running_it(tmp_path, monkeypatch, stae):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb()))
    torch.save({"x": Bomb()}, tmp_path / "zip.pt")
    for name in ("plain.pt", "zip.pt"):
        stae("weights", "show", name).assert_fails(1, name, "without running it")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.safetensors", "a.bin"])
@pytest.mark.parametrize("data", [b"", b"text", b"PK\x03\x04broken", b"\xff" * 100])
def test_damaged_files_are_refused(tmp_path, stae, name, data):
    (tmp_path / name).write_bytes(data)
    stae("weights", "show", tmp_path / name).assert_fails(1, name)


def test_truncated_checkpoints_are_refused(tmp_path, tensors, stae):
    torch.save(tensors, tmp_path / "a.pt")
    saved(tmp_path / "a.safetensors", tensors)
    for path in (tmp_path / "a.pt", tmp_path / "a.safetensors"):
        path.write_bytes(path.read_bytes()[:-1000])
        stae("weights", "show", path).assert_fails(1, path.name)


def test_a_text_for_a_pickle_is_told_in_words(tmp_path, stae):
    (tmp_path / "text.pt").write_text("junk\n")
    stae("weights", "show", tmp_path / "text.pt").assert_fails(
        1, "text.pt", "it is not a checkpoint"
    )


def test_a_pickle_of_something_else_is_refused(tmp_path, stae):
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "a.pt")
    stae("weights", "show", tmp_path / "a.pt").assert_fails(1, "state dict")


@pytest.mark.filterwarnings("ignore:.*(nested|quantize|Sparse)")
@pytest.mark.parametrize(
    "odd",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.empty(3, device="meta"),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        lambda: torch._neg_view(torch.ones(3)),
        lambda: torch.ones(1).expand(1 << 45),
        lambda: torch.ones(3, dtype=torch.complex64).conj(),
        lambda: torch.ones(3).to(torch.float8_e4m3fn),
    ],
)
def test_pickles_of_other_than_plain_tensors_are_refused(tmp_path, stae, odd):
    for name, kept in (("a.pt", seeded_tensors()), ("b.pt", {})):
        torch.save({**kept, "decoder.0.last.bias": odd()}, tmp_path / name)
        stae("weights", "show", tmp_path / name).assert_fails(1, name)


def test_tensors_of_any_strides_are_read(tmp_path):
    tensors = seeded_tensors()
    strided = {name: t.T.contiguous().T if t.ndim == 2 else t for name, t in tensors.items()}
    torch.save(strided, tmp_path / "a.pt")
    read = read_checkpoint(tmp_path / "a.pt", name="a")
    assert read.fingerprint == fingerprint(tensors)
    assert all(tensor.is_contiguous() for tensor in read.tensors.values())


@pytest.mark.skipif(os.name == "nt", reason="no pipes that are files")
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_special_files_are_refused(tmp_path, stae, name):
    os.mkfifo(tmp_path / name)
    stae("weights", "show", tmp_path / name).assert_fails(1, name, "special file")


def test_a_write_clears_what_a_killed_one_left(tmp_path, tensors):
    left, mine = tmp_path / temporary_name(), tmp_path / temporary_name()
    for path in (left, mine):
        path.write_bytes(b"half")
    os.utime(left, (1, 1))
    write_checkpoint(tmp_path / "a.safetensors", tensors, TINY, {})
    assert sorted(tmp_path.iterdir()) == sorted([mine, tmp_path / "a.safetensors"])


def test_a_network_that_a_file_cannot_hold_is_not_set_up(tmp_path, tensors, stae):
    """Sixty thousand blocks take minutes."""
    for size in ("encoder_blocks", "decoder_pairs"):
        sizes = replace(TINY, **{size: 60_000})
        path = saved(tmp_path / "a.safetensors", tensors, {"architecture": sizes.describe()})
        stae("weights", "show", path).assert_fails(1, f"{sizes.blocks} blocks", "46 tensors")


def test_absent_and_unknown_names_are_told(tmp_path, stae):
    stae("weights", "show", tmp_path / "no.pt").assert_fails(1, "no.pt")
    stae("weights", "show", "photo-99").assert_fails(1, "photo-99", "builtin")
    stae("weights", "show", "hf://x").assert_fails(2, "hf://x")


def test_recorded_weights_must_have_the_recorded_fingerprint():
    known = load_checkpoint("builtin")

    def find(fingerprint, name):
        return find_by_fingerprint(fingerprint, name=name, architecture="f8c16").fingerprint

    assert find(known.fingerprint, "photo-2") == known.fingerprint
    assert find(known.fingerprint, "mine.safetensors") == known.fingerprint
    with pytest.raises(CheckpointError, match="other weights"):
        find("0" * 64, "photo-2")
    with pytest.raises(CheckpointError, match="not available here"):
        find("0" * 64, "mine.safetensors")


def test_a_model_is_loaded_from_a_path_too(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(seeded_tensors(), path)
    by_path, by_name = StupidAE.from_checkpoint(path), StupidAE.from_checkpoint(str(path))
    assert load_model(path).state_dict().keys() == by_name.state_dict().keys()
    pairs = zip(by_path.parameters(), by_name.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_convert_keeps_the_fingerprint(tmp_path, tensors, stae):
    torch.save(seeded_tensors(), tmp_path / "a.pt")
    assert stae("weights", "convert", tmp_path / "a.pt", tmp_path / "b.safetensors").code == 0
    shown = [
        stae("weights", "show", tmp_path / n, "--json").json for n in ("a.pt", "b.safetensors")
    ]
    assert shown[0]["fingerprint"] == shown[1]["fingerprint"]
    again = stae("weights", "convert", tmp_path / "a.pt", tmp_path / "b.safetensors")
    again.assert_fails(2, "exists")
    stae("weights", "convert", tmp_path / "a.pt", tmp_path / "b.pt").assert_fails(2, "b.pt")
    nowhere = stae("weights", "convert", tmp_path / "a.pt", tmp_path / "no" / "b.safetensors")
    nowhere.assert_fails(2, "no folder")


def test_convert_to_half_precision(tmp_path, stae):
    source, target = (
        saved(tmp_path / "a.safetensors", seeded_tensors(TINY)),
        tmp_path / "b.safetensors",
    )
    assert stae("weights", "convert", source, target, "--dtype", "float16").code == 0
    assert {t.dtype for t in load_file(target).values()} == {torch.float16}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("value", "dtype", "to"),
    [
        (1e5, torch.float32, "float16"),
        (1e300, torch.float64, "float32"),
        (3.4e38, torch.float32, "bfloat16"),
    ],
)
def test_convert_refuses_what_a_dtype_cannot_hold(tmp_path, tensors, stae, value, dtype, to):
    wide = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    wide["decoder.0.last.bias"][1] = value
    source, target = saved(tmp_path / "a.safetensors", wide), tmp_path / "b.safetensors"
    ran = stae("weights", "convert", source, target, "--dtype", to)
    ran.assert_fails(1, "decoder.0.last.bias", f"too large for {to}")
    assert not target.exists()
    assert stae("weights", "convert", source, target).code == 0


def test_weights_that_float32_cannot_hold_are_refused(tmp_path, tensors):
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    path = saved(tmp_path / "a.safetensors", wide)
    assert torch.equal(
        read_checkpoint(path, name="").model().decoder[0].last.bias, tensors["decoder.0.last.bias"]
    )
    wide["decoder.0.last.bias"][1] = 1e300
    with pytest.raises(CheckpointError, match="too large for float32"):
        StupidAE.from_checkpoint(str(saved(path, wide)))


def linear_encoder(tensors, patches):
    """The encoder in plain PyTorch, as a user would write it: (N, 192) -> (N, 16)."""
    functional = torch.nn.functional

    def layer(name, rows):
        return functional.linear(rows, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    rows = layer("encoder.0.initial.0", patches)
    for block in ("encoder.0.blocks.0", "encoder.0.blocks.1"):
        scale = torch.rsqrt(rows.square().mean(-1, keepdim=True) + 1e-8)
        gate, act = layer(
            f"{block}.mlp.conv_up", rows * scale * tensors[f"{block}.norm.weight"]
        ).chunk(2, dim=-1)
        rows = rows + layer(
            f"{block}.mlp.conv_down", gate * functional.gelu(act, approximate="tanh")
        )
    hidden = functional.gelu(layer("encoder.0.out.model.0", rows))
    return layer("encoder.0.out.model.2", hidden)


def test_a_linear_encoder_is_the_same_checkpoint(tmp_path, tensors, stae):
    source, target = saved(tmp_path / "a.safetensors", tensors), tmp_path / "linear.safetensors"
    assert stae("weights", "convert", source, target, "--linear").code == 0
    stored = load_file(target)
    assert stored["encoder.0.initial.0.weight"].shape == (32, 192)
    encoder = [name for name in stored if name.startswith("encoder.")]
    assert all(stored[name].ndim <= 2 for name in encoder)
    assert stored["decoder.0.conv_in.model.0.weight"].ndim == 4
    one, two = (read_checkpoint(path, name="") for path in (source, target))
    assert one.fingerprint == two.fingerprint
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in tensors)
    image = torch.rand(1, 3, 16, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    patches = torch.nn.functional.unfold(image, 8, stride=8)[0].T
    with torch.no_grad():
        expected = one.model().encode(image)[0].flatten(1).T
        torch.testing.assert_close(linear_encoder(stored, patches), expected, rtol=0, atol=1e-5)
    back = tmp_path / "back.safetensors"
    assert stae("weights", "convert", target, back).code == 0
    assert all(torch.equal(each, tensors[name]) for name, each in load_file(back).items())


def test_a_two_stage_checkpoint_has_a_linear_form_too(tmp_path, stae):
    sizes = tiny_like(PRESETS["f32c64"])
    write_checkpoint(tmp_path / "a.safetensors", seeded_tensors(sizes), sizes, {})
    target = tmp_path / "b.safetensors"
    assert stae("weights", "convert", tmp_path / "a.safetensors", target, "--linear").code == 0
    assert load_file(target)["encoder.1.initial.0.weight"].shape == (32, 16 * 16)
    shown = [
        stae("weights", "show", tmp_path / n, "--json").json for n in ("a.safetensors", target)
    ]
    assert shown[0]["fingerprint"] == shown[1]["fingerprint"]


@pytest.mark.parametrize("layout", ["cubic", "linear"])
def test_a_wrong_encoder_layout_is_refused(tmp_path, tensors, stae, layout):
    tensors["encoder.0.initial.0.weight"] = (
        tensors["encoder.0.initial.0.weight"].flatten(1)[:, 1:].clone()
    )
    about = {"architecture": TINY.describe(), "encoder_layout": layout}
    path = saved(tmp_path / "a.safetensors", tensors, about)
    words = "cubic" if layout == "cubic" else "encoder.0.initial.0.weight (32, 191)"
    stae("weights", "show", path).assert_fails(1, words)


def test_a_second_stage_without_its_first_is_told(tmp_path, stae):
    sizes = tiny_like(PRESETS["f32c64"])
    alone = {name: t for name, t in seeded_tensors(sizes).items() if name.split(".")[1] == "1"}
    path = saved(tmp_path / "a.safetensors", alone, {"architecture": sizes.describe()})
    stae("weights", "show", path).assert_fails(1, "second stage without its first")


def test_a_pickle_of_another_preset_is_named(tmp_path, stae):
    torch.save(seeded_tensors(PRESETS["f8c32"]), tmp_path / "mine.pt")
    ran = stae("weights", "show", tmp_path / "mine.pt")
    ran.assert_fails(1, "not a StupidAE f8c16", "those of a f8c32")


@pytest.mark.parametrize("name", PRESETS)
def test_the_architecture_is_stored_and_not_guessed(tmp_path, name):
    for sizes in (PRESETS[name], tiny_like(PRESETS[name])):
        assert parse_architecture(sizes.describe()) == sizes
    sizes = tiny_like(PRESETS[name])
    path = tmp_path / "f8c16.safetensors"
    write_checkpoint(path, seeded_tensors(sizes), sizes, {})
    assert read_checkpoint(path, name="").architecture == sizes


def test_list_names_what_ships(stae):
    listed = stae("weights", "list", "--json").json
    assert listed["photo-2"]["where"].startswith("ships")
    assert "stupidae" in listed
