"""Datasets on a hub as SOURCE: a real client and a local server."""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Ran
from tests.data_hub import TOKEN, DataHub
from tests.launcher import launcher_without_settings
from tests.pictures import write_photos

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


@pytest.fixture
def pictures(photos):
    return {path.relative_to(photos).as_posix(): path.read_bytes()
            for path in sorted(photos.rglob("*.png"))}  # fmt: skip


def table(data, *, group=2, **columns):
    rows = [{"bytes": each, "path": None} for each in data]
    out = io.BytesIO()
    columns = {"image": pa.array(rows, PICTURE)} | columns
    pq.write_table(pa.table(columns), out, row_group_size=group)
    return out.getvalue()


def tar(pictures):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for name, data in pictures.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def hub(pictures):
    data = list(pictures.values())
    rows = {"README.md": b"# a card", "data/train-0.parquet": table(data[:5]),
            "data/train-1.parquet": table(data[5:])}  # fmt: skip
    with DataHub(rows=rows, tars={"a/0.tar": tar(pictures)}, images=dict(pictures)) as server:
        server.revisions["me/images"]["refs/convert/parquet"] = {"default/0.parquet": table(data)}
        yield server


@pytest.fixture(scope="module")
def launcher():
    with launcher_without_settings() as launcher:
        yield launcher


@pytest.fixture
def encode(launcher, hub, tiny, tmp_path):
    """Encodes in a process of its own, since the hub client reads its environment once."""
    log = tmp_path / "log"

    def run(url, *options, dest="out", **environment):
        variables = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url,
                     "HF_HUB_DISABLE_XET": "1", **environment}  # fmt: skip
        words = ("encode", url, tmp_path / dest, "--weights", tiny, "--json", "--quiet", *options)
        code = launcher.wait(launcher.start(*words, log=log, environment=variables))
        ran = Ran(code, log.with_name("log.out").read_text(), log.read_text())
        assert "Traceback" not in ran.err
        return ran

    return run


@pytest.mark.parametrize(
    ("url", "key"),
    [("hf://datasets/me/rows", "data/train-0/00000000"),
     ("hf://datasets/me/rows@main/data", "train-0/00000000"),
     ("hf://datasets/me/images@refs/convert/parquet", "default/0/00000000"),
     ("hf://datasets/me/images@refs%2Fconvert%2Fparquet/default", "0/00000000"),
     ("hf://datasets/me/tars", "a/0/p0"),
     ("hf://datasets/me/images", "p0")],
)  # fmt: skip
def test_a_dataset_is_encoded_once(encode, hub, pictures, tmp_path, url, key):
    ran = encode(url)
    assert ran.code == 0, ran.err
    assert ran.json["done"] == len(pictures)
    first = sorted((tmp_path / "out").rglob("*.safetensors"))[0]
    assert first == tmp_path / "out" / f"{key}.safetensors"
    assert encode(url).json["skipped"] == len(pictures)


def test_finished_files_are_not_read_again(encode, hub, pictures):
    url = "hf://datasets/me/rows/data/train-0.parquet"
    assert encode(url, "--shard-size", 8).json["done"] == 5
    hub.requests.clear()
    assert encode(url, "--shard-size", 8).json["skipped"] == 5
    reads = [request for request in hub.requests if "/resolve/" in request]
    assert len(reads) < 6  # the footer, to choose the column
    hub.files("rows")["data/train-0.parquet"] = table(list(pictures.values())[:4])
    ran = encode(url, "--shard-size", 8)
    assert (ran.code, ran.json["done"]) == (0, 4)


def test_captions_of_finished_rows_are_not_read_again(encode, hub, pictures):
    columns = {"text": [f"text {n}" for n in range(len(pictures))]}
    hub.files("rows")["data/train-0.parquet"] = table(list(pictures.values()), **columns)
    url = "hf://datasets/me/rows/data/train-0.parquet"
    assert encode(url).json["done"] == len(pictures)
    hub.requests.clear()
    assert encode(url).json["skipped"] == len(pictures)
    assert len([request for request in hub.requests if "/resolve/" in request]) < 10


def test_only_what_is_needed_is_read(encode, hub, tmp_path):
    assert encode("hf://datasets/me/rows").code == 0
    hub.requests.clear()
    (tmp_path / "out/data/train-1/00000001.safetensors").unlink()
    assert encode("hf://datasets/me/rows").json["done"] == 1
    assert len([request for request in hub.requests if "/resolve/" in request]) < 20


def test_private_and_gated_datasets(encode, hub):
    hub.private["me/rows"] = True
    ran = encode("hf://datasets/me/rows")
    assert ran.code == 2
    assert "nothing is there, or it is private: `hf://datasets/me/rows`" in ran.err
    assert "HF_TOKEN" in ran.err
    assert encode("hf://datasets/me/rows", HF_TOKEN=TOKEN).code == 0
    hub.gated.add("me/tars")
    ran = encode("hf://datasets/me/tars", dest="gated", HF_TOKEN=TOKEN)
    assert ran.code == 3
    assert "access to this repository is not granted" in ran.err


def test_a_hub_that_does_not_answer(encode):
    ran = encode("hf://datasets/me/rows", HF_ENDPOINT="http://127.0.0.1:9")
    assert ran.code == 1
    assert "cannot reach `hf://datasets/me/rows`" in ran.err
    assert "hint: " in ran.err
