"""Stores as SOURCE and DEST: `memory://` in this process, and S3 against a server on loopback."""

import io
import json
import logging
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from stae_cli.latents.manifest import read_manifests
from stae_cli.storage.fsspec_store import Store
from stae_cli.storage.remote_destination import destination_at
from stae_cli.storage.remote_entry import RemoteEntry
from tests.pictures import noise, write_photos

fsspec = pytest.importorskip("fsspec", reason="needs pip install 'stae[remote]'")


class ClientError(Exception):
    """What a store's package raises that is no OSError."""


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


@pytest.fixture
def memory():
    """The file system behind `memory://`, empty."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    store.store.clear()


def upload(fs, folder, path):
    for file in folder.rglob("*"):
        if file.is_file():
            fs.pipe_file(f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(noise(30, 20, seed=seed)).save(out, "png")
    return out.getvalue()


def pixels_of(folder):
    return {
        p.relative_to(folder).as_posix(): Image.open(p).convert("RGB").tobytes()
        for p in folder.rglob("*.png")
    }


def objects(fs, path):
    return {name.removeprefix(path): fs.cat_file(name) for name in fs.find(path)}


def made_at(fs):
    """When each shard was made; the manifest is written anew by every run."""
    return {name: fs.info(name)["created"] for name in fs.find("/out") if "shard" in name}


def test_latents_on_a_store_are_those_of_a_folder(stae, photos, memory, tiny, tmp_path):
    ran = stae("encode", photos, "memory://out/latents", "--weights", tiny, "--json")
    assert (ran.code, ran.json["done"], ran.json["dest"]) == (0, 9, "memory://out/latents")
    names = {"/stae.json", "/manifest.jsonl", "/shard-00000.safetensors"}
    assert set(objects(memory, "/out/latents")) == names
    stae("encode", photos, tmp_path / "local", "--weights", tiny, "--shard-size", 256)
    local = (tmp_path / "local" / "shard-00000.safetensors").read_bytes()
    assert objects(memory, "/out/latents")["/shard-00000.safetensors"] == local
    for source, pictures in (("memory://out/latents", "a"), (tmp_path / "local", "b")):
        ran = stae("decode", source, tmp_path / pictures, "--weights", tiny)
        assert ran.code == 0, ran.err
    assert pixels_of(tmp_path / "a") == pixels_of(tmp_path / "b")
    assert (
        stae("decode", "memory://out/latents", tmp_path / "a", "--weights", tiny, "--json").json[
            "skipped"
        ]
        == 9
    )
    inspected = stae("inspect", "memory://out/latents", "--json").json
    assert (inspected["latents"], inspected["stored_in"], inspected["invalid"]) == (9, 1, [])


def test_a_finished_run_is_skipped_and_a_changed_object_is_not(stae, photos, memory, tiny):
    upload(memory, photos, "/in")
    command = ("encode", "memory://in", "memory://out", "--weights", tiny, "--json")
    assert stae(*command, "--shard-size", 4).json["done"] == 9
    before = objects(memory, "/out")
    made = made_at(memory)
    again = stae(*command, "--shard-size", 4)
    assert (again.json["done"], again.json["skipped"]) == (0, 9)
    assert made_at(memory) == made
    memory.pipe_file("/in/p0.png", memory.cat_file("/in/p0.png"))  # the same bytes, a new object
    third = stae(*command, "--shard-size", 4)
    assert (third.json["done"], third.json["skipped"]) == (1, 8)
    changed = {name for name, data in objects(memory, "/out").items() if data != before[name]}
    assert changed == {"/shard-00000.safetensors"}
    memory.rm("/out/shard-00001.safetensors")
    assert stae(*command, "--shard-size", 4).json["done"] == 4


def test_captions_of_a_store(stae, photos, memory, tiny, monkeypatch):
    """Those of finished pictures are fetched only when contents are compared, or to add them."""
    (photos / "p0.txt").write_text("first")
    (photos / "sub" / "metadata.jsonl").write_text('{"file_name": "p8.png", "text": "in a table"}')
    upload(memory, photos, "/in")
    command = ("encode", "memory://in", "memory://out", "--weights", tiny, "--json")

    def captions():
        rows = stae("inspect", "memory://out", "--files", "--json").json["files"]
        return {row["source"]: row["caption"] for row in rows if "caption" in row}

    assert stae(*command, "--no-captions").json["done"] == 9
    assert captions() == {}
    assert stae(*command).json["noted"] == 2
    assert captions() == {"p0.png": "first", "sub/p8.png": "in a table"}
    memory.pipe_file("/in/p0.txt", b"second")
    fetched, read = [], Store.read
    monkeypatch.setattr(
        Store, "read", lambda self, name, *a: fetched.append(name) or read(self, name, *a)
    )
    assert stae(*command).json["noted"] == 0
    assert "p0.txt" not in fetched
    assert stae(*command, "--compare", "content").json["noted"] == 1
    assert captions()["p0.png"] == "second"


def test_a_file_for_each_image_on_a_store(stae, photos, memory, tiny):
    upload(memory, photos, "/in")
    memory.pipe_file("/in/bad.png", b"no image")
    command = ("encode", "memory://in", "memory://out", "--weights", tiny, "--shard-size", 0)
    ran = stae(*command, "--json")
    assert (ran.code, ran.json["done"], ran.json["failed"]) == (3, 9, 1)
    assert "memory://out/failures.jsonl" in ran.err
    assert json.loads(memory.cat_file("/out/failures.jsonl"))["source"] == "bad.png"
    assert memory.exists("/out/sub/p8.safetensors")
    memory.rm("/in/bad.png")
    again = stae(*command, "--json")
    assert (again.code, again.json["done"], again.json["skipped"]) == (0, 0, 9)
    assert not memory.exists("/out/failures.jsonl")
    other = stae("encode", "memory://in", "memory://out", "--weights", tiny, "--square", 8)
    other.assert_fails(1, "prep", "memory://out")


def test_a_tar_on_a_store(stae, memory, tiny, tmp_path):
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        for name in ("a.png", "b.txt", "c/d.png", "../e.png"):
            info = tarfile.TarInfo(name)
            info.size = len(data := png(len(name)))
            file.addfile(info, io.BytesIO(data))
    memory.pipe_file("/in/set.tar", tar.getvalue())
    command = ("encode", "memory://in", "memory://out", "--weights", tiny, "--json")
    ran = stae(*command)
    assert (ran.code, ran.json["done"], ran.json["failed"]) == (3, 2, 1)
    assert memory.exists("/out/set/shard-00000.safetensors")
    assert stae(*command).json["skipped"] == 2
    (tmp_path / "set.tar").write_bytes(tar.getvalue())
    local = stae("encode", tmp_path / "set.tar", tmp_path / "out", "--weights", tiny, "--json")
    assert local.json["done"] == 2
    memory.pipe_file("/in/set.tar", tar.getvalue()[:5000])
    cut = stae(*command)
    assert cut.code == 3
    assert "truncated" in cut.err


def test_a_large_manifest_on_a_store_is_read_in_few_requests(memory, monkeypatch):
    lines = [
        json.dumps({"key": f"{n:06}", "shard": "shard-00000.safetensors"}) for n in range(9000)
    ]
    memory.pipe_file("/out/manifest.jsonl", "\n".join(lines).encode())
    requests = []
    read = Store.read
    monkeypatch.setattr(Store, "read", lambda *given: requests.append(given) or read(*given))
    assert len(list(read_manifests(destination_at("memory://out")))) == 9000
    assert len(requests) <= 3


def tar_with(memory, path, members):
    """Puts a tar of these names and bytes on the store."""
    with io.BytesIO() as data:
        with tarfile.open(fileobj=data, mode="w") as file:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
        memory.pipe_file(path, data.getvalue())


def test_a_tar_that_is_done_is_not_fetched_again(stae, memory, tiny, tmp_path, monkeypatch):
    fetched = []
    fetch = RemoteEntry.fetch

    def watched(entry):
        fetched.append(entry.key)
        return fetch(entry)

    monkeypatch.setattr(RemoteEntry, "fetch", watched)

    def encode(*options):
        fetched.clear()
        command = ("encode", "memory://in", "memory://out", "--weights", tiny, "--shard-size", 2)
        return stae(*command, *options, "--json")

    five = {f"{number}.png": png(number) for number in range(5)}
    tar_with(memory, "/in/good.tar", five)
    tar_with(memory, "/in/bad.tar", {**five, "broken.png": b"none"})
    tar_with(memory, "/in/odd.tar", {**five, "../out.png": png(0)})
    first = encode()
    assert sorted(fetched) == ["bad.tar", "good.tar", "odd.tar"]
    assert (first.json["done"], first.json["failed"]) == (15, 2)
    before = objects(memory, "/out")
    again = encode()
    assert sorted(fetched) == ["bad.tar", "odd.tar"]  # whose failures are to be listed again
    assert (again.json["skipped"], again.json["failures"]) == (15, first.json["failures"])
    after = objects(memory, "/out")
    assert sorted(before["/manifest.jsonl"].splitlines()) == sorted(
        after["/manifest.jsonl"].splitlines()
    )
    assert {n: d for n, d in after.items() if "shard" in n} == {
        n: d for n, d in before.items() if "shard" in n
    }
    memory.rm_file("/out/good/shard-00001.safetensors")
    assert encode().json["done"] == 2
    assert "good.tar" in fetched
    memory.pipe_file(
        "/out/good/shard-00002.safetensors", after["/good/shard-00002.safetensors"][:-1]
    )
    assert encode().json["done"] == 1
    tar_with(memory, "/in/good.tar", {**five, "1.png": png(9)})  # changed, as its tag tells
    assert encode().json["done"] == 5
    assert encode().json["skipped"] == 15
    assert "good.tar" not in fetched
    assert encode("--overwrite").json["done"] == 15
    checked = stae("verify", "memory://out", "--against", "memory://in", "--json").json
    assert {row["kind"] for row in checked["findings"]} == {"missing", "unreadable"}


def test_latents_on_a_store_are_verified_and_described(stae, photos, memory, tiny, tmp_path):
    upload(memory, photos, "/in")
    with tarfile.open(tmp_path / "t.tar", "w") as file:
        for name in ("p0.png", "p1.png", "p1.png"):  # the last one twice, as tars may
            file.add(photos / name, name)
    memory.put_file(str(tmp_path / "t.tar"), "/in/t.tar")
    encode = ("encode", "memory://in", "memory://out", "--weights", tiny, "--shard-size", 4)
    stae(*encode)
    verify = ("verify", "memory://out", "--against", "memory://in", "--json")
    ran = stae(*verify, "--reencode", 5, "--weights", tiny)
    assert not ran.json["findings"]
    assert (ran.json["latents"], ran.json["sources"]) == (11, 11)
    assert len(ran.json["reencoded"]) == 5
    stae("encode", photos, tmp_path / "local", "--weights", tiny)
    memory.rm("/in/t.tar")
    for name in memory.find("/out/t"):
        memory.rm_file(name)
    there = stae("stats", "memory://out", "--json").json
    here = stae("stats", tmp_path / "local", "--json").json
    assert there["mean"] == pytest.approx(here["mean"])
    assert there["latents"] == here["latents"]
    shard = memory.cat_file("/out/shard-00001.safetensors")
    memory.pipe_file("/out/shard-00001.safetensors", shard[:-2])
    memory.pipe_file("/in/p0.png", png(7))
    found = {(row["kind"], row["key"]) for row in stae(*verify).json["findings"]}
    assert ("damaged", "shard-00001.safetensors") in found
    assert ("stale", "shard-00000.safetensors:p0") in found
    stae("verify", "memory://nowhere").assert_fails(2, "memory://nowhere")


def test_what_stores_cannot_do_is_said(stae, photos, memory, tiny):
    stae("encode", "memory://absent", "memory://out", "--weights", tiny).assert_fails(2, "absent")
    stae("encode", photos, "nosuch://out", "--weights", tiny).assert_fails(2, "nosuch://")
    stae("encode", "nosuch://in", "memory://o", "--weights", tiny).assert_fails(2, "nosuch")
    stae("encode", photos, "sftp://host/out", "--weights", tiny).assert_fails(2, "atomically")
    stae("decode", photos, "memory://out", "--weights", tiny).assert_fails(2, "URL")
    upload(memory, photos, "/in")
    inside = stae("encode", "memory://in", "memory://in/out", "--weights", tiny)
    inside.assert_fails(2, "inside SOURCE")
    taken = stae("encode", "memory://in", "memory://in/p0.png", "--weights", tiny)
    taken.assert_fails(2, "DEST")
    assert "/in/p0.png" in memory.find("/")


def test_a_missing_package_is_named(stae, photos, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    ran = stae("encode", photos, "s3://bucket/out", "--weights", tiny)
    ran.assert_fails(1, "s3fs", "stae[remote]")


def test_names_that_lead_elsewhere_are_listed(stae, memory, tiny):
    for name in ("good.png", "con.png", "a\\b.png"):
        memory.pipe_file(f"/in/{name}", png(1))
    ran = stae("encode", "memory://in", "memory://out", "--weights", tiny, "--json")
    assert (ran.code, ran.json["done"], ran.json["failed"]) == (3, 1, 2)


def refuse(monkeypatch, memory, name, *, of, error):
    """Lets a method of the store fail for the objects whose name holds `of`."""
    method = getattr(type(memory), name)

    def refusing(self, *arguments, **options):
        if any(isinstance(one, str) and of in one for one in arguments):
            raise error
        return method(self, *arguments, **options)

    monkeypatch.setattr(type(memory), name, refusing)


def test_refused_objects_are_listed_and_a_refused_dest_ends_the_run(
    stae, photos, memory, tiny, monkeypatch
):
    upload(memory, photos, "/in")
    command = ("encode", "memory://in", "memory://out", "--weights", tiny, "--shard-size", 3)
    with monkeypatch.context() as patch:
        refuse(patch, memory, "put_file", of="/out", error=PermissionError("Access Denied"))
        stae(*command).assert_fails(1, "memory://out", "Access Denied")
    assert memory.find("/out") == []
    with monkeypatch.context() as patch:
        refuse(patch, memory, "put_file", of="shard-00001", error=ClientError("Slow Down"))
        patch.setattr("stae_cli.storage.fsspec_store.FOREIGN", ((__name__, "ClientError"),))
        stae(*command).assert_fails(1, "memory://out/shard-00001.safetensors", "Slow Down")
    with monkeypatch.context() as patch:
        refuse(patch, memory, "cat_file", of="p4.png", error=PermissionError("Access Denied"))
        ran = stae(*command)
        assert ran.code == 3
        assert "p4.png: cannot read it: Access Denied" in ran.err
    assert stae(*command, "--json").json["done"] == 1
    assert stae(*command, "--json").json["skipped"] == 9


def test_an_output_that_cannot_be_looked_at_is_not_done_again(
    stae, photos, memory, tiny, monkeypatch
):
    command = ("encode", photos, "memory://out", "--weights", tiny)
    assert stae(*command).code == 0
    before = objects(memory, "/out")
    refuse(monkeypatch, memory, "cat_file", of="shard-", error=TimeoutError("no answer"))
    stae(*command).assert_fails(1, "memory://out/shard-00000.safetensors", "no answer")
    monkeypatch.undo()
    assert objects(memory, "/out") == before


@pytest.fixture(scope="module")
def s3_server():
    """The address of an S3 server on loopback."""
    pytest.importorskip("s3fs", reason="needs pip install 'stae[remote]'")
    moto = pytest.importorskip(
        "moto.server", reason="needs pip install 'moto[s3]' flask flask-cors"
    )
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """The file system of that server, which the command line finds too."""
    import s3fs

    aim(monkeypatch, s3_server)
    store = s3fs.S3FileSystem(use_listings_cache=False)
    store.mkdir("bucket")
    yield store
    store.rm("bucket", recursive=True)


def aim(monkeypatch, endpoint):
    """Lets S3 be at an address, as users do."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    s3fs.S3FileSystem.clear_instance_cache()


def test_s3_to_s3_and_back(stae, photos, s3, tiny, tmp_path):
    upload(s3, photos, "bucket/in")
    with tarfile.open(tmp_path / "more.tar", "w") as file:
        file.add(photos / "p0.png", "p0.png")
    s3.put_file(str(tmp_path / "more.tar"), "bucket/in/more.tar")
    command = ("encode", "s3://bucket/in", "s3://bucket/out", "--weights", tiny, "--json")
    ran = stae(*command, "--shard-size", 5)
    assert (ran.code, ran.json["done"]) == (0, 10), ran.err
    expected = {"stae.json", "manifest.jsonl", "more/shard-00000.safetensors"}
    expected |= {f"shard-0000{number}.safetensors" for number in range(2)}
    assert {name.removeprefix("bucket/out/") for name in s3.find("bucket/out")} == expected
    stae("encode", photos, tmp_path / "local", "--weights", tiny)
    for source, dest in (("s3://bucket/out", "a"), (tmp_path / "local", "b")):
        assert stae("decode", source, tmp_path / dest, "--weights", tiny).code == 0
    there, here = pixels_of(tmp_path / "a"), pixels_of(tmp_path / "b")
    assert there.pop("more/p0.png") == here["p0.png"]
    assert there == here
    again = stae(*command, "--shard-size", 5)
    assert (again.json["done"], again.json["skipped"]) == (0, 10)


def test_a_changed_object_of_s3_is_done_again(stae, photos, s3, tiny):
    upload(s3, photos, "bucket/in")
    command = ("encode", "s3://bucket/in", "s3://bucket/out", "--weights", tiny, "--json")
    assert stae(*command).json["done"] == 9
    s3.pipe_file("bucket/in/p1.png", s3.cat_file("bucket/in/p1.png"))
    assert stae(*command).json["skipped"] == 9  # the same bytes have the same tag
    s3.pipe_file("bucket/in/p1.png", png(5))
    third = stae(*command)
    assert (third.json["done"], third.json["skipped"]) == (1, 8)
    rows = stae("inspect", "s3://bucket/out", "--files", "--json").json["files"]
    etags = {row["key"]: row["source_etag"] for row in rows}
    assert etags["p1"] == s3.info("bucket/in/p1.png")["ETag"].strip('"')
    s3.rm_file("bucket/out/shard-00000.safetensors")
    assert stae(*command).json["done"] == 9


def test_what_s3_refuses_is_said(stae, photos, s3, tiny, monkeypatch):
    weights = ("--weights", tiny)
    stae("encode", photos, "s3://absent/out", *weights).assert_fails(1, "s3://absent/out", "bucket")
    stae("encode", "s3://absent/in", "s3://bucket/o", *weights).assert_fails(2, "s3://absent/in")
    stae("encode", "s3://bucket/no", "s3://bucket/o", *weights).assert_fails(2, "s3://bucket/no")
    stae("inspect", "s3://bucket/no").assert_fails(2, "s3://bucket/no")
    aim(monkeypatch, "http://127.0.0.1:9")  # where nothing listens
    stae("encode", photos, "s3://bucket/o", *weights).assert_fails(1, "s3://bucket/o", "127.0.0.1")
    stae("encode", "s3://bucket/o", "out", *weights).assert_fails(1, "s3://bucket/o", "127.0.0.1")


@pytest.fixture
def bare_http():
    """The address of a server that reports no ETag and no time, except for `/dated.png`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            data = png(1)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            if self.path == "/dated.png":
                self.send_header("Last-Modified", "Thu, 01 Oct 2026 10:00:00 GMT")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_whose_changes_would_go_unseen_is_that_inputs_failure(
    stae, photos, bare_http, tiny, tmp_path
):
    pytest.importorskip("aiohttp", reason="fsspec reads http with it")
    bare = f"{bare_http}/bare.png"
    sources = (f"{bare_http}/dated.png", bare, photos)
    command = ("encode", *sources, tmp_path / "out", "--weights", tiny, "--json")
    for done, skipped in ((10, 0), (0, 10)):
        ran = stae(*command)
        assert (ran.code, ran.json["done"], ran.json["skipped"]) == (3, done, skipped)
        (failure,) = ran.json["failures"]
        assert failure["source"] == bare
        assert "neither an ETag nor a time" in failure["reason"]
