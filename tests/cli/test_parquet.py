"""`stae encode` of Parquet files as users run it: the latents of the folder they were made from."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stae_cli.latents.listing import list_latents
from tests.pictures import noise, write_photos

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


def write(path, data, **columns):
    """A Parquet file as `datasets` writes one, with groups of three rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [each if each is None else {"bytes": each, "path": None} for each in data]
    table = pa.table({"image": pa.array(rows, PICTURE)} | columns)
    pq.write_table(table, path, row_group_size=3)


@pytest.fixture
def tables(photos, tmp_path):
    """The photos in two Parquet files, by name."""
    data = [path.read_bytes() for path in sorted(photos.rglob("*.png"))]
    folder = tmp_path / "tables"
    texts = [f"text {n}" for n in range(9)]
    write(folder / "a.parquet", data[:5], text=texts[:5], label=list(range(5)))
    write(folder / "more/b.parquet", data[5:], text=texts[5:], label=list(range(5, 9)))
    return folder


@pytest.fixture
def encode(stae, tiny, tmp_path):
    def run(source, *options, dest="out"):
        return stae("encode", source, tmp_path / dest, "--weights", tiny, *options, "--json")

    return run


def stored(dest):
    listing = list_latents([dest])
    assert not listing.problems
    return {latent.key: latent for latent in listing.latents}


@pytest.mark.parametrize("options", [(), ("--shard-size", 2)])
def test_rows_give_the_latents_of_the_folder_they_were_made_from(
    stae, encode, photos, tables, tmp_path, options
):
    assert encode(photos, *options, dest="folder").code == 0
    ran = encode(tables, *options)
    assert (ran.code, ran.json["done"]) == (0, 9)
    found = stored(tmp_path / "out")
    assert list(found)[:6] == [*(f"a/0000000{n}" for n in range(5)), "more/b/00000000"]
    assert [latent.info.caption for latent in found.values()] == [f"text {n}" for n in range(9)]
    assert [latent.info.label for latent in found.values()] == list(range(9))
    names = sorted(path.relative_to(photos).with_suffix("").as_posix()
                   for path in photos.rglob("*.png"))  # fmt: skip
    originals = stored(tmp_path / "folder")
    for latent, name in zip(found.values(), names, strict=True):
        assert latent.read().tobytes() == originals[name].read().tobytes()
    assert encode(tables, *options).json["skipped"] == 9
    assert encode(tables, *options, "--compare", "content").json["skipped"] == 9
    for compare in ("time", "content"):
        ran = stae("verify", tmp_path / "out", "--against", tables, "--compare", compare)
        assert ran.code == 0


def test_one_bad_row_and_one_bad_file_do_not_stop_the_rest(encode, tables, photos, tmp_path):
    data = [path.read_bytes() for path in sorted(photos.rglob("*.png"))[:3]]
    write(tables / "c.parquet", [data[0], None, b"no picture", data[1]])
    (tables / "d.parquet").write_bytes((tables / "a.parquet").read_bytes()[:-20])
    ran = encode(tables)
    assert (ran.code, ran.json["done"]) == (3, 11)
    reasons = {json.loads(line)["source"] for line in
               (tmp_path / "out/failures.jsonl").read_text().splitlines()}  # fmt: skip
    assert reasons == {"c/00000001", "c/00000002", "d.parquet"}
    write(tables / "c.parquet", data)
    (tables / "d.parquet").unlink()
    ran = encode(tables)
    assert (ran.code, ran.json["done"], ran.json["skipped"]) == (0, 3, 9)


def test_an_interrupted_run_continues(encode, tables, tmp_path):
    assert encode(tables).code == 0
    for name in ("a/00000001", "more/b/00000003"):
        (tmp_path / f"out/{name}.safetensors").unlink()
    ran = encode(tables)
    assert (ran.json["done"], ran.json["skipped"]) == (2, 7)


def test_prune_removes_latents_of_rows_and_files_that_are_gone(encode, tables, tmp_path):
    assert encode(tables).code == 0
    pictures = pq.read_table(tables / "a.parquet").column("image").to_pylist()
    write(tables / "a.parquet", [each["bytes"] for each in pictures[:3]])
    (tables / "more/b.parquet").unlink()
    (tables / "more/c.png").write_bytes(pictures[0]["bytes"])
    ran = encode(tables, "--prune")
    assert ran.code == 0
    assert sorted(stored(tmp_path / "out")) == [*(f"a/0000000{n}" for n in range(3)), "more/c"]


def test_shares_take_files_in_turn(encode, tables, tmp_path):
    for rank in (0, 1):
        share = ("--unit-rank", rank, "--unit-count", 2)
        assert encode(tables, "--shard-size", 4, *share).code == 0
    assert len(stored(tmp_path / "out")) == 9


def test_the_column_is_recorded(stae, encode, tmp_path):
    path = tmp_path / "in/t.parquet"
    for name, seed in (("one.png", 1), ("two.png", 2)):
        Image.fromarray(noise(16, 16, seed=seed)).save(tmp_path / name)
    pair = [[{"bytes": (tmp_path / name).read_bytes(), "path": None}]
            for name in ("one.png", "two.png")]  # fmt: skip
    path.parent.mkdir()
    pq.write_table(pa.table({"image": pa.array(pair[0], PICTURE),
                             "mask": pa.array(pair[1], PICTURE)}), path)  # fmt: skip
    ran = encode(path)
    assert ran.code == 2
    assert "several columns of pictures: image, mask" in ran.err
    assert "--image-column" in ran.err
    assert encode(path, "--image-column", "mask").json["done"] == 1
    ran = encode(path, "--image-column", "image")
    assert ran.code == 1
    assert "holds another run: image_column: image, not mask" in ran.err
    verified = stae("verify", tmp_path / "out", "--against", path, "--compare", "content")
    assert verified.code == 0


def test_tables_without_pictures_beside_images(encode, photos, tmp_path):
    pq.write_table(pa.table({"url": ["a"]}), photos / "00000.parquet")
    ran = encode(photos)
    assert (ran.code, ran.json["done"]) == (0, 9)
    assert ran.json["passed_over_by_suffix"] == {".parquet": 1}
    ran = encode(photos / "00000.parquet", dest="other")
    assert ran.code == 3
    assert "no column of pictures; its columns are url (string)" in ran.err
