"""`stae decode` of latents that other programs wrote: what a trained model samples, as pictures."""

import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stae_cli import Codec, LatentDataset, load_model
from stae_cli.checkpoints.checkpoint import read_checkpoint
from tests.pictures import EXAMPLES, noise, write_photos

pytestmark = pytest.mark.usefixtures("same_codec")
SHAPE = (3, 16, 4, 6)  # three pictures of 48x32 pixels


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def drawn(shape=SHAPE, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def expected(tiny, latents):
    """What the network itself makes of raw latents (N, C, h, w), as levels."""
    with torch.no_grad():
        images = read_checkpoint(tiny, name="").model().decode(latents.float())
    return ((images + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()


def assert_pictures(folder, levels):
    paths = sorted(folder.glob("*.png"))
    assert [path.name for path in paths] == [f"{n:05d}.png" for n in range(len(levels))]
    for path, each in zip(paths, levels, strict=True):
        assert np.abs(pixels_of(path) - each).max() <= 1  # where rounding could go either way


@pytest.fixture
def decode(stae, tiny, tmp_path):
    """Runs `decode` with the tiny network, to `out`."""

    def run(*arguments):
        return stae("decode", *arguments, tmp_path / "out", "--weights", tiny, "--json")

    return run


def reasons_of(ran):
    return {row["source"]: row["reason"] for row in ran.json["failures"]}


def unnamed(latents):
    """Bfloat16 as NumPy stores what JAX gives it: two bytes without a name."""
    return latents.bfloat16().view(torch.int16).numpy().view("V2")


WRITERS = {
    "a.npy": lambda path, z: np.save(path, z.numpy()),
    "half.npy": lambda path, z: np.save(path, z.half().numpy()),
    "double.npy": lambda path, z: np.save(path, z.double().numpy()),
    "big.npy": lambda path, z: np.save(path, z.numpy().astype(">f4")),
    "fortran.npy": lambda path, z: np.save(path, np.asfortranarray(z.numpy())),
    "bf16.npy": lambda path, z: np.save(path, unnamed(z)),
    "bf16-fortran.npy": lambda path, z: np.save(path, np.asfortranarray(unnamed(z))),
    "bf16.npz": lambda path, z: np.savez_compressed(path, unnamed(z)),
    "a.npz": lambda path, z: np.savez(path, z.numpy()),
    "small.npz": lambda path, z: np.savez_compressed(path, samples=z.numpy()),
    "fortran.npz": lambda path, z: np.savez_compressed(path, np.asfortranarray(z.numpy())),
    "a.pt": lambda path, z: torch.save(z, path),
    "grad.pth": lambda path, z: torch.save(torch.nn.Parameter(z), path),
    "bf16.pt": lambda path, z: torch.save({"latents": z.bfloat16(), "step": 3}, path),
    "view.pt": lambda path, z: torch.save(z.flip(0).flip(0).transpose(2, 3).transpose(2, 3), path),
    "old.pt": lambda path, z: torch.save(z, path, _use_new_zipfile_serialization=False),
    "list.pt": lambda path, z: torch.save(list(z), path),
    "a.safetensors": lambda path, z: save_file({"latents": z}, path),
    "bf16.safetensors": lambda path, z: save_file({"z": z.bfloat16()}, path),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_each_kind_of_file_gives_the_networks_pictures(decode, tiny, tmp_path, name):
    latents = drawn()
    WRITERS[name](tmp_path / name, latents)
    ran = decode(tmp_path / name)
    assert (ran.code, ran.json["done"], ran.json["failed"]) == (0, 3, 0), ran.err
    kept = latents.bfloat16() if "bf16" in name else latents
    assert_pictures(tmp_path / "out" / name.partition(".")[0], expected(tiny, kept))


def test_one_latent_is_one_picture_and_many_have_a_folder(decode, tmp_path):
    folder = tmp_path / "gen"
    (folder / "sub").mkdir(parents=True)
    np.save(folder / "one.npy", drawn()[0].numpy())
    np.save(folder / "batch-of-one.npy", drawn()[:1].numpy())
    np.save(folder / "sub" / "many.npy", drawn().numpy())
    two = {"latents": drawn(), "flip/../x": drawn()[0], "labels": torch.arange(3)}
    save_file(two, folder / "shard.safetensors")
    (folder / "notes.txt").write_text("x")
    ran = decode(folder)
    assert ran.code == 0, ran.err
    assert ran.json["passed_over_by_suffix"] == {".txt": 1, "arrays of integers": 1}
    names = sorted(p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("*.png"))
    assert names == [
        "batch-of-one.png",
        "one.png",
        "shard/flip_.._x.png",
        *(f"shard/latents/0000{n}.png" for n in range(3)),
        *(f"sub/many/0000{n}.png" for n in range(3)),
    ]


def test_the_network_has_to_be_named(stae, tmp_path):
    np.save(tmp_path / "a.npy", drawn().numpy())
    ran = stae("decode", tmp_path / "a.npy", tmp_path / "out")
    ran.assert_fails(2, "a.npy", "--weights")
    assert not (tmp_path / "out").exists()


def test_normalised_per_channel_comes_back_as_the_latents_themselves(stae, tiny, tmp_path):
    """Encode, train on normalised latents, sample, decode: within one level of 255."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        Image.fromarray(noise(48, 32, seed=number)).save(photos / f"{number:05d}.png")
    assert stae("encode", photos, tmp_path / "l", "--weights", tiny).code == 0
    assert stae("decode", tmp_path / "l", tmp_path / "stae", "--weights", tiny).code == 0
    stats = stae("stats", tmp_path / "l", "--json")
    (tmp_path / "stats.json").write_text(stats.out)
    mean, std = (np.array(stats.json[name]) for name in ("mean", "std"))
    dataset = LatentDataset(tmp_path / "l", shift=mean, scale=1 / std)
    samples = torch.stack([sample["latents"] for sample in dataset])
    assert samples.mean((0, 2, 3)).abs().max() < 1e-3
    assert (samples.std((0, 2, 3)) - 1).abs().max() < 0.01
    np.save(tmp_path / "samples.npy", samples.numpy())
    torch.save(
        {"mean": torch.tensor(mean).view(1, -1, 1, 1), "std": torch.tensor(std).view(1, -1, 1, 1)},
        tmp_path / "latents_stats.pt",
    )
    for file in ("stats.json", "latents_stats.pt"):
        out = tmp_path / f"out-{file}"
        args = ["decode", tmp_path / "samples.npy", out, "--stats", tmp_path / file]
        ran = stae(*args, "--weights", tiny, "--json")
        assert (ran.code, ran.json["done"]) == (0, 4), ran.err
        for path in sorted((out / "samples").glob("*.png")):
            apart = np.abs(pixels_of(path) - pixels_of(tmp_path / "stae" / path.name))
            assert apart.max() <= 1
            assert (apart == 0).mean() > 0.99


def test_shift_and_scale_are_those_of_normalize(decode, tiny, tmp_path):
    raw = drawn()
    codec = Codec(load_model(tiny), device="cpu")
    np.save(tmp_path / "a.npy", codec.normalize(raw, shift=0.25, scale=1.6).numpy())
    ran = decode(tmp_path / "a.npy", "--shift", 0.25, "--scale", 1.6)
    assert ran.code == 0, ran.err
    assert_pictures(tmp_path / "out" / "a", expected(tiny, raw))


def test_a_checkpoint_gives_the_statistics_that_it_records(stae, tmp_path):
    model = load_model("builtin")
    recorded = json.loads(read_checkpoint_metadata("latents"))
    raw = Codec(model, device="cpu").encode(torch.rand(2, 3, 32, 48) * 2 - 1)
    mean, std = (torch.tensor(recorded[name]).view(-1, 1, 1) for name in ("mean", "std"))
    np.save(tmp_path / "a.npy", ((raw - mean) / std).numpy())
    np.save(tmp_path / "raw.npy", raw.numpy())
    out, weights = tmp_path / "out", ("--weights", "builtin")
    ran = stae("decode", tmp_path / "a.npy", out, *weights, "--stats", builtin_path())
    assert ran.code == 0, ran.err
    assert stae("decode", tmp_path / "raw.npy", tmp_path / "raw", *weights).code == 0
    for name in ("00000.png", "00001.png"):
        apart = pixels_of(out / "a" / name) - pixels_of(tmp_path / "raw" / "raw" / name)
        assert np.abs(apart).max() <= 1


def builtin_path():
    from stae_cli.checkpoints.names import locate

    return locate("builtin").path


def read_checkpoint_metadata(name):
    return read_checkpoint(builtin_path(), name="").metadata[name]


def test_normalised_latents_are_noticed(stae, tmp_path):
    paths = sorted(EXAMPLES.glob("*.png"))[:2] * 4
    arguments = ["encode", *dict.fromkeys(paths), tmp_path / "l", "--weights", "builtin"]
    assert stae(*arguments, "--square", 128).code == 0
    raw = torch.stack([sample["latents"] for sample in LatentDataset(tmp_path / "l")])
    raw = torch.cat([raw, raw.flip(2), raw.flip(3), raw.transpose(2, 3)])
    np.save(tmp_path / "raw.npy", raw.numpy())
    normal = (raw - raw.mean((0, 2, 3), keepdim=True)) / raw.std((0, 2, 3), keepdim=True)
    np.save(tmp_path / "normal.npy", normal.numpy())
    np.save(tmp_path / "few.npy", normal[:3].numpy())
    found = {
        name: "look normalised"
        in stae("decode", tmp_path / f"{name}.npy", tmp_path / name, "--weights", "builtin").err
        for name in ("raw", "normal", "few")
    }
    assert found == {"raw": False, "normal": True, "few": False}


def test_bad_arrays_are_listed_and_others_are_decoded(decode, tmp_path):
    folder, latents = tmp_path / "gen", drawn()
    folder.mkdir()
    broken = latents.clone()
    broken[1, 0, 0, 0], broken[2, 3, 1, 1] = float("nan"), float("inf")
    np.save(folder / "nan.npy", broken.numpy())
    np.save(folder / "last.npy", latents.movedim(1, -1).numpy())
    np.save(folder / "tokens.npy", latents.flatten(2).movedim(1, -1).numpy())
    np.save(folder / "eight.npy", latents[:, :8].numpy())
    np.save(folder / "int.npy", latents.int().numpy())
    np.save(folder / "flat.npy", latents[0, 0].numpy())
    np.save(folder / "five.npy", latents[None].numpy())
    np.save(folder / "empty.npy", np.zeros((0, 16, 4, 4), np.float32))
    np.save(folder / "huge.npy", np.full((1, 16, 4, 4), 1e300))
    np.save(folder / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(folder / "some.npz", good=latents.numpy(), bad=latents[:, :4].numpy())
    whole = (folder / "last.npy").read_bytes()
    (folder / "cut.npy").write_bytes(whole[:-5])
    (folder / "cut-header.npy").write_bytes(whole[:20])
    (folder / "nothing.npy").write_bytes(b"")
    (folder / "text.npz").write_text("hello, this is text\n")
    packed = (folder / "some.npz").read_bytes()
    (folder / "cut.npz").write_bytes(packed[: len(packed) // 2])
    torch.save({f"layer{n}.weight": torch.zeros(4, 4) for n in range(9)}, folder / "model.pt")
    torch.save({"a": {"b": latents}}, folder / "nested.pt")
    with (folder / "code.pt").open("wb") as file:
        pickle.dump({"f": print}, file)
    ran = decode(folder)
    assert ran.code == 3
    reasons = reasons_of(ran)
    for label, word in {
        "nan.npy[1]": "NaN",
        "nan.npy[2]": "NaN",
        "last.npy": "channels last; `np.moveaxis(z, -1, -3)` makes it (N, C, h, w)",
        "tokens.npy": "tokens (N, h * w, C) need a reshape",
        "eight.npy": "8 channels, but the network of --weights has 16",
        "int.npy": "int32",
        "flat.npy": "(4, 6)",
        "five.npy": "(C, h, w) or (N, C, h, w)",
        "empty.npy": "empty array (0, 16, 4, 4)",
        "huge.npy[0]": "infinity",
        "object.npy": "never unpickled",
        "some.npz:bad": "4 channels",
        "cut.npy": "truncated",
        "cut-header.npy": "truncated",
        "nothing.npy": "empty file",
        "text.npz": "not latents",
        "cut.npz": "truncated or damaged",
        "model.pt": "9 arrays, none of them latents",
        "nested.pt": "`a` in it is a dict",
        "code.pt": "a Python pickle, not latents",
    }.items():
        assert word in reasons.pop(label), label
    assert not reasons
    names = sorted(p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("*.png"))
    assert names == ["nan/00000.png", *(f"some/0000{n}.png" for n in range(3))]
    listed = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert len(listed) == ran.json["failed"]


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


def test_code_in_a_pickle_is_never_run(decode, tmp_path):
    torch.save({"latents": drawn(), "evil": Evil()}, tmp_path / "evil.pt")
    ran = decode(tmp_path / "evil.pt")
    assert ran.code == 3
    assert "refused without running it" in reasons_of(ran)["evil.pt"]


def test_bombs_are_refused_before_they_are_unpacked(decode, tmp_path):
    np.savez_compressed(tmp_path / "zeros.npz", np.zeros((4000, 16, 32, 32), np.float16))
    torch.save(torch.zeros(1).expand(10**6, 16, 4, 4), tmp_path / "wide.pt")
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 16, 4, 4)}\n"
    claim = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header
    (tmp_path / "claim.npy").write_bytes(claim + bytes(1000))
    with zipfile.ZipFile(tmp_path / "claim.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", claim + bytes(1000))
    torch.save(drawn(), tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain:
        parts = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in parts.items():
            file.writestr(name, data)
    (tmp_path / "plain.pt").unlink()
    ran = decode(*sorted(tmp_path.glob("*.*")))
    assert ran.code == 3
    reasons = reasons_of(ran)
    assert "would unpack" in reasons["zeros.npz"]
    assert "fewer than its shape says" in reasons["wide.pt"]
    assert "truncated" in reasons["claim.npy"]
    assert "would unpack" in reasons["claim.npz"]
    assert "compressed archive" in reasons["packed.pt"]


def test_a_rerun_skips_what_is_done_and_replaces_what_is_outdated(decode, tmp_path):
    file = tmp_path / "a.npy"
    np.save(file, drawn().numpy())
    assert decode(file).json["done"] == 3
    again = decode(file)
    assert (again.json["done"], again.json["skipped"]) == (0, 3)
    picture = tmp_path / "out" / "a" / "00001.png"
    before = picture.read_bytes()
    picture.unlink()
    assert decode(file).json["done"] == 1
    assert picture.read_bytes() == before
    assert decode(file, "--shift", 0.5).json["done"] == 3  # other values: other pictures
    assert picture.read_bytes() != before
    np.save(file, drawn(seed=1).numpy())
    assert decode(file).json["done"] == 3
    (tmp_path / "other").mkdir()
    np.save(tmp_path / "other" / "a.npy", drawn().numpy())
    ran = decode(tmp_path / "other" / "a.npy")
    assert (ran.code, ran.json["failed"]) == (3, 3)
    assert "another folder" in ran.err
    assert not list((tmp_path / "out").rglob(".stae-*"))


def test_latents_of_stae_and_others_are_not_mixed(stae, tiny, decode, tmp_path):
    photos = write_photos(tmp_path / "photos")
    latents = tmp_path / "latents"
    assert stae("encode", photos, latents, "--weights", tiny).code == 0
    np.save(latents / "beside.npy", drawn().numpy())
    ran = decode(latents)
    assert (ran.code, ran.json["done"]) == (0, 9)
    assert ran.json["passed_over_by_suffix"] == {".npy": 1}
    ran = stae("decode", latents, latents / "beside.npy", tmp_path / "o", "--weights", tiny)
    ran.assert_fails(2, "beside.npy", "in a run of their own")
    for options in (("--shift", 0.5), ("--stats", tmp_path / "s.json")):
        (tmp_path / "s.json").write_text('{"mean": 0, "std": 1}')
        ran = stae("decode", latents, tmp_path / "o", "--weights", tiny, *options)
        ran.assert_fails(2, "for latents of other programs")
    named = latents / "p0.safetensors"
    named.rename(tmp_path / "p0.npy")  # its content says what it is
    ran = stae("decode", tmp_path / "p0.npy", tmp_path / "q", "--weights", tiny)
    assert ran.code == 0, ran.err


def test_statistics_beside_latents_are_not_latents(decode, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    save_file({"latents": drawn(), "labels": torch.arange(3)}, folder / "a.safetensors")
    statistics = {"mean": torch.zeros(1, 16, 1, 1), "std": torch.ones(1, 16, 1, 1)}
    torch.save(statistics, folder / "latents_stats.pt")
    ran = decode(folder, "--stats", folder / "latents_stats.pt")
    assert (ran.code, ran.json["done"]) == (0, 3), ran.err
    assert ran.json["passed_over"] == 2
    again = decode(folder, "--overwrite")
    assert again.json["passed_over_by_suffix"]["statistics of latents"] == 1


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "JSON"),
        ('{"mean": [0, 1], "std": [1, 1]}', "2 numbers for latents of 16 channels"),
        ('{"mean": [0]}', "no `mean` and `std`"),
        ('{"mean": 0, "std": -1}', "negative"),
        ('{"mean": 0, "std": "a"}', "not a number"),
        ('{"mean": [[0, 1], [1, 2]], "std": 1}', "not a number"),
        ("hello", "neither JSON nor a file of tensors"),
        ("\x89PNG", "holds no statistics"),
    ],
)
def test_bad_statistics(decode, tmp_path, text, word):
    np.save(tmp_path / "a.npy", drawn().numpy())
    (tmp_path / "s.json").write_text(text)
    decode(tmp_path / "a.npy", "--stats", tmp_path / "s.json").assert_fails(2, word)


def test_statistics_of_another_checkpoint_are_noticed(decode, tmp_path):
    np.save(tmp_path / "a.npy", drawn().numpy())
    text = json.dumps({"mean": 0.5, "std": 2.0, "weights_sha256": "ab" * 32})
    (tmp_path / "s.json").write_text(text, encoding="utf-16")  # as PowerShell writes it
    ran = decode(tmp_path / "a.npy", "--stats", tmp_path / "s.json")
    assert (ran.code, ran.json["done"]) == (0, 3)
    assert "another checkpoint (abababababab) than" in ran.err


def test_usage_errors(decode, tmp_path):
    np.save(tmp_path / "a.npy", drawn().numpy())
    np.savez(tmp_path / "a.npz", drawn().numpy())
    one = tmp_path / "a.npy"
    decode(one, "--stats", tmp_path / "absent.json").assert_fails(2, "absent.json")
    decode(one, "--stats", tmp_path).assert_fails(2, "folder")
    decode(one, "--stats", one, "--scale", 2).assert_fails(2, "instead of")
    decode(one, "--scale", 0).assert_fails(2, "--scale 0")
    decode(one, "--shift", "nan").assert_fails(2, "--shift nan")
    decode(one, tmp_path / "a.npz").assert_fails(2, "would both write `a/00000.png`")
    np.save(tmp_path / "b.npy", drawn()[0].numpy())
    np.save(tmp_path / "b.png.npy", drawn().numpy())
    decode(tmp_path / "b.npy", tmp_path / "b.png.npy").assert_fails(2, "a folder for")


def test_a_large_latent_is_too_long_for_webp_and_too_many_pixels(stae, tiny, tmp_path):
    np.save(tmp_path / "long.npy", np.zeros((16, 1, 2100), np.float16))
    args = ["decode", tmp_path / "long.npy", tmp_path / "out", "--weights", tiny]
    ran = stae(*args, "--format", "webp", "--json")
    assert "--format png" in reasons_of(ran)["long.npy"]
    header = b"{'descr': '<f2', 'fortran_order': False, 'shape': (16, 3000, 3000)}\n"
    with (tmp_path / "wide.npy").open("wb") as file:
        file.write(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
        file.truncate(10 + len(header) + 16 * 3000 * 3000 * 2)  # sparse
    ran = stae("decode", tmp_path / "wide.npy", tmp_path / "wide", "--weights", tiny, "--json")
    assert "24000x24000 pixels" in reasons_of(ran)["wide.npy"]
