"""Parquet files: which rows are found in them, and that odd ones are listed and do no harm."""

import json
import random
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stae_cli.errors import InputError, StaeError, UsageError
from stae_cli.storage import parquet, parquet_rows
from stae_cli.storage.entry import FileEntry, Problem
from stae_cli.storage.notes import Notes
from stae_cli.storage.parquet import parquet_of, rows
from stae_cli.storage.parquet_columns import choose_columns
from stae_cli.storage.parquet_rows import Rows
from stae_cli.storage.sources import list_sources

SUFFIXES = [".png"]
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def images(*data):
    return pa.array([{"bytes": each, "path": None} for each in data], PICTURE)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in" / "t.parquet"


def make(path, columns=None, *, group=2, metadata=None, **options):
    columns = {"image": images(b"0", b"1", b"2", b"3", b"4")} if columns is None else columns
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=group, **options)


def found(path, column=""):
    """The bytes of each row by key, and the reason of each problem."""
    entries, problems = {}, {}
    for item in rows(parquet.ParquetFile("t", FileEntry("t.parquet", str(path)), column)):
        try:
            if isinstance(item, Problem):
                problems[item.key] = item.reason
            else:
                with item.open() as file:
                    entries[item.key] = file.read()
        except InputError as error:
            problems[item.key] = error.message
    return entries, problems


@pytest.mark.parametrize(
    "column",
    [images(b"a", b"b", b"c"), pa.array([b"a", b"b", b"c"]),
     pa.array([b"a", b"b", b"c"], pa.large_binary()),
     pa.array([{"bytes": each} for each in (b"a", b"b", b"c")])],
)  # fmt: skip
def test_the_rows_are_pictures_named_by_their_numbers(path, column):
    make(path, {"id": [1, 2, 3], "image": column})
    assert found(path) == ({f"t/0000000{n}": bytes([97 + n]) for n in range(3)}, {})


def test_rows_without_a_picture_are_problems_of_their_own(path):
    column = [None, {"bytes": None, "path": None}, {"bytes": None, "path": "/a/b.png"},
              {"bytes": b"x", "path": "b.png"}]  # fmt: skip
    make(path, {"image": pa.array(column, PICTURE)})
    entries, problems = found(path)
    assert entries == {"t/00000003": b"x"}
    assert problems == {
        "t/00000000": "the row has no picture",
        "t/00000001": "the row has no picture",
        "t/00000002": "only a path is stored, not the picture: '/a/b.png'",
    }


def test_captions_and_labels_of_rows(path):
    columns = {"image": images(b"0", b"1", b"2"), "text": ["a ", None, "c"], "label": [3, -1, None]}
    make(path, columns)
    entries = list(rows(parquet_of(FileEntry("t.parquet", str(path)))))
    assert [entry.notes() for entry in entries] == [Notes("a", 3), Notes(), Notes("c")]
    make(path, {"image": images(b"0"), "text": [["a", "b"]], "label": ["cat"]})
    assert [entry.notes() for entry in rows(parquet_of(FileEntry("t.parquet", str(path))))] == [
        Notes()
    ]


def schema_of(columns, features=None):
    noted = {b"huggingface": json.dumps({"info": {"features": features}})} if features else None
    return pa.schema(columns, metadata=noted)


def test_the_column_is_found_by_name_and_type():
    binary = pa.binary()
    assert choose_columns(schema_of({"photo_of_it": PICTURE, "text": pa.string()})).image == (
        "photo_of_it"
    )
    assert choose_columns(schema_of({"jpg": binary, "latents": binary})).image == "jpg"
    assert choose_columns(schema_of({"a": binary, "b": binary}), "b").image == "b"
    kinds = {"image": {"_type": "Image"}, "audio": {"_type": "Audio"}}
    both = {"image": PICTURE, "audio": PICTURE}
    assert choose_columns(schema_of(both, kinds)).image == "image"
    with pytest.raises(InputError, match="several columns of pictures: image, audio"):
        choose_columns(schema_of(both))
    with pytest.raises(InputError, match=r"no column of pictures; its columns are a \(binary\)"):
        choose_columns(schema_of({"a": binary}))
    with pytest.raises(InputError, match=r"its column `image` holds no pictures.*list<"):
        choose_columns(schema_of({"image": pa.list_(PICTURE)}), "image")
    with pytest.raises(InputError, match="no column `mask`"):
        choose_columns(schema_of({"image": PICTURE}), "mask")


@pytest.mark.parametrize("group", [1, 7, 1000])
def test_rows_in_any_order_by_several_threads(path, group, monkeypatch):
    monkeypatch.setattr(parquet_rows, "BATCH", 4000)
    monkeypatch.setattr(parquet_rows, "KEPT", 1000)
    data = [random.Random(n).randbytes(300 + n) for n in range(200)]
    make(path, {"image": images(*data)}, group=group, data_page_size=1000)
    archive, wrong = Rows(FileEntry("t.parquet", str(path))), []

    def read(seed):
        order = list(range(0, 200, 1 + seed))
        if seed == 3:
            random.Random(0).shuffle(order)
        wrong.extend(n for n in order if archive.picture(n) != data[n])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_rows_in_order_are_read_once_and_little_is_kept(path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "BATCH", 40_000)
    monkeypatch.setattr(parquet_rows, "KEPT", 50_000)
    data = [random.Random(n).randbytes(10_000) for n in range(300)]
    make(path, {"image": images(*data)}, group=100, write_batch_size=1)
    archive, begun = Rows(FileEntry("t.parquet", str(path))), []
    forward = archive._forward
    monkeypatch.setattr(archive, "_forward", lambda row: begun.append(row) or forward(row))
    for number in range(300):
        archive.picture(number)
        assert sum(batch.size for batch in archive._kept) < 200_000
    assert begun == [0, 100, 200]


@pytest.mark.parametrize(
    ("write", "reason"),
    [(lambda p: p.write_bytes(b""), "damaged Parquet file: "),
     (lambda p: p.write_bytes(b"PAR1" + b"x" * 100 + b"PAR1"), "damaged Parquet file: "),
     (lambda p: p.write_bytes(p.read_bytes()[:-9]), "damaged Parquet file: "),
     (lambda p: p.write_bytes(p.read_bytes()[:-4] + b"PARE"), "an encrypted Parquet file"),
     (lambda p: p.unlink(), "cannot read it: No such file or directory"),
     (lambda p: make(p, {"image": images()}), "a Parquet file without rows"),
     (lambda p: make(p, {"a": [1]}), "no column of pictures; its columns are a (int64)"),
     (lambda p: pq.write_table(pa.table({}), p), "no column of pictures; it has no columns")],
)  # fmt: skip
def test_what_cannot_be_read_is_one_problem(path, write, reason):
    make(path)
    write(path)
    entries, problems = found(path)
    assert entries == {}
    assert problems.keys() == {"t.parquet"}
    assert problems["t.parquet"].startswith(reason)


def test_damage_inside_fails_the_rows_of_its_group_only(path):
    data = [random.Random(n).randbytes(2000) for n in range(6)]
    columns = {"image": pa.array(data)}
    options = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    make(path, columns, write_page_checksum=True, **options)
    raw = bytearray(path.read_bytes())
    raw[raw.index(data[3]) + 5] ^= 1
    path.write_bytes(raw)
    entries, problems = found(path)
    assert entries == {f"t/0000000{n}": data[n] for n in (0, 1, 4, 5)}
    assert problems.keys() == {"t/00000002", "t/00000003"}
    assert all(reason.startswith("damaged Parquet file: ") for reason in problems.values())


def test_a_file_that_changes_while_it_is_read(path):
    make(path, {"image": images(*(bytes([n]) * 9 for n in range(9)))})
    archive = Rows(FileEntry("t.parquet", str(path)))
    assert archive.picture(0) == b"\0" * 9
    make(path)
    with pytest.raises(InputError, match="changed since it was listed"):
        archive.picture(4)


def test_listing_passes_over_tables_without_pictures(path, tmp_path):
    make(path)
    make(path.with_name("meta.parquet"), {"url": ["a"]})
    listing = list_sources([path.parent], None, suffixes=SUFFIXES, with_tars=True)
    assert [file.prefix for file in listing.tars] == ["t"]
    assert dict(listing.passed_over) == {".parquet": 1}
    given = list_sources([path.with_name("meta.parquet")], None, suffixes=SUFFIXES, with_tars=True)
    assert [file.prefix for file in given.tars] == ["meta"]  # and an error when it is read
    path.unlink()
    with pytest.raises(StaeError, match=r"no inputs found .*only 1 other file: \.parquet 1"):
        list_sources([path.parent], None, suffixes=SUFFIXES, with_tars=True)


def test_listing_refuses_an_unclear_column(path):
    make(path, {"image": images(b"a"), "mask": images(b"b")})

    def column(name):
        listing = list_sources(
            [path.parent], None, suffixes=SUFFIXES, with_tars=True, image_column=name
        )
        return listing.tars[0].column

    assert column("mask") == "mask"
    with pytest.raises(UsageError, match="several columns of pictures: image, mask") as caught:
        column("")
    assert "--image-column" in caught.value.hint
    with pytest.raises(UsageError, match=r"no column `msk`; its columns are image"):
        column("msk")


def test_without_pyarrow_they_are_passed_over_or_refused(path, monkeypatch):
    from stae_cli.storage import archives, tars

    monkeypatch.setattr(parquet, "IS_READ", False)
    monkeypatch.setattr(archives, "READ", tars.SUFFIXES)
    make(path)
    with pytest.raises(StaeError, match="needs pyarrow") as caught:
        list_sources([path], None, suffixes=SUFFIXES, with_tars=True)
    assert "stae[parquet]" in caught.value.hint
    path.with_name("a.png").write_bytes(b"x")
    listing = list_sources([path.parent], None, suffixes=SUFFIXES, with_tars=True)
    assert dict(listing.passed_over) == {".parquet": 1}
