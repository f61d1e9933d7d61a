"""`stae bench` as users run it: what it prints where, and what it refuses before measuring."""

import pytest
from PIL import Image

from tests.pictures import write_photos
from tests.rigs import keep_here
from tests.svg import texts_of


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    keep_here(monkeypatch)


@pytest.fixture
def bench(stae, tiny):
    def run(*arguments):
        return stae("bench", "--weights", tiny, "--device", "cpu", "--seconds", "0", *arguments)

    return run


@pytest.fixture
def unmeasured(monkeypatch):
    def refuse(*_arguments, **_options):
        raise AssertionError("measured")

    monkeypatch.setattr("stae_cli.benchmark.run._run_case", refuse)


@pytest.mark.parametrize("command", [(), ("network",)])
def test_every_size_meets_every_batch(stae, tiny, command):
    common = ("--weights", tiny, "--device", "cpu", "--seconds", "0", "--json")
    sizes = ("--size", "16", "--size", "24x8", "--batch", "1", "--batch", "2")
    ran = stae("bench", *command, *common, *sizes)
    assert ran.code == 0
    cases = [result["case"] for result in ran.json["results"]]
    assert [(case["width"], case["height"], case["batch"]) for case in cases] == [
        (16, 16, 1),
        (16, 16, 2),
        (24, 8, 1),
        (24, 8, 2),
    ]
    assert ran.json["weights"] == "tiny.safetensors"
    assert ran.json["machine"]["device"] == "cpu"


def test_the_report_is_on_stdout_and_names_the_cpu(bench):
    ran = bench("--size", "16")
    assert ran.code == 0
    assert "timing 16x16, batch 1" in ran.err
    assert "ran on the CPU" in ran.out
    assert "float32" in ran.out
    for word in ("16x16, batch 1", "encoder", "decoder", "images/s", "share", "peak memory"):
        assert word in ran.out
    assert "x stae" not in ran.out


def test_others_are_compared_in_a_table_for_each_stage(bench):
    ran = bench("--size", "16", "--against", "reference")
    assert ran.code == 0
    assert "x stae" in ran.out
    assert "reference" in ran.out
    assert all(len(line) <= 80 for line in ran.out.splitlines() if "─" in line)
    assert "…" not in ran.out
    timings = bench("--size", "16", "--against", "reference", "--json").json["results"][0][
        "timings"
    ]
    assert [(each["network"], each["stage"]) for each in timings] == [
        ("stae", "encoder"),
        ("stae", "decoder"),
        ("reference", "encoder"),
        ("reference", "decoder"),
    ]


def test_who_is_left_out_is_said_with_the_reason(bench, monkeypatch):
    from stae_cli.benchmark import rig as running

    def failing(name, *given):
        if name == "reference":
            raise RuntimeError("cuDNN does not like it")
        return real(name, *given)

    real = running.contender
    monkeypatch.setattr(running, "contender", failing)
    ran = bench("--size", "16", "--against", "reference", "--json")
    assert ran.code == 0
    assert "reference is left out: cuDNN does not like it" in ran.err
    assert ran.json["results"][0]["left_out"] == {"reference": "cuDNN does not like it"}


def test_quiet_says_nothing(bench):
    ran = bench("--size", "16", "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_a_dtype_that_was_asked_for_is_used(bench):
    ran = bench("--size", "8", "--dtype", "bfloat16", "--json")
    assert ran.json["dtype"] == "bfloat16"


def test_the_chart_is_written(bench, tmp_path):
    drawn, written = tmp_path / "chart.png", tmp_path / "chart.svg"
    assert bench("--size", "16", "--plot", drawn).code == 0
    with Image.open(drawn) as image:
        assert image.format == "PNG"
    assert bench("--size", "16", "--against", "reference", "--plot", written).code == 0
    assert {"encoder, 16x16, batch 1", "stae", "reference"} <= {*texts_of(written)}


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "20"], ["not a multiple of 8"]),
        (["--size", "0"], ["not a multiple of 8"]),
        (["--size", "16", "--size", "big"], ["malformed size `big`"]),
        (["--batch", "0"], ["--batch"]),
        (["--against", "reference,flux"], ["unknown network `flux`", "sdxl"]),
        (["--device", "tpu"], ["unknown device `tpu`"]),
        (["--plot", "absent/chart.png"], ["no folder `absent`"]),
        (["--plot", "chart.pdf"], ["does not end in .png or .svg"]),
        (["--against", "unfused"], ["`unfused` differs from stae on CUDA only", "`cpu`"]),
        (["--against", "reference,unfused"], ["`unfused` differs from stae on CUDA only"]),
        (["--against", "products"], ["unknown network `products`"]),
        (["--transformer", "base"], ["`--transformer` is for `--loop`", "omit it"]),
        (["--workers", "2"], ["`--workers` is for `--path`"]),
    ],
    ids=lambda each: " ".join(each) if each[0].startswith("--") else "",
)
def test_what_makes_no_sense_is_refused_before_measuring(bench, arguments, words):
    bench(*arguments).assert_fails(2, *words)


@pytest.mark.usefixtures("unmeasured")
def test_engines_of_the_cpu_are_refused_elsewhere(stae, tiny, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    common = ("bench", "--weights", tiny, "--device", "cuda", "--against", "openvino")
    stae(*common).assert_fails(2, "`openvino` is timed on the CPU only, and this is `cuda`")


@pytest.mark.usefixtures("unmeasured")
def test_an_absent_checkpoint_is_named(stae):
    stae("bench", "--weights", "absent.safetensors").assert_fails(1, "absent.safetensors")


def test_weights_are_seeded_unless_named(stae, monkeypatch):
    from tests.seeded import TINY, seeded_model

    monkeypatch.setattr("stae_cli.benchmark.contenders.seeded_model", lambda _: seeded_model(TINY))
    ran = stae("bench", "--size", "8", "--seconds", "0", "--device", "cpu", "--json")
    assert ran.json["weights"] == "seeded"


@pytest.mark.parametrize("command", ["--path", "path"])
def test_the_path_of_a_folder_is_timed_stage_by_stage(stae, tiny, tmp_path, command):
    photos = write_photos(tmp_path / "photos")
    (photos / "damaged.jpg").write_bytes(b"no image")
    before = {path: path.stat().st_mtime_ns for path in photos.rglob("*")}
    arguments = ("bench", command, photos, "--weights", tiny, "--device", "cpu")
    ran = stae(*arguments, "--json")
    assert ran.code == 0
    assert [path["command"] for path in ran.json["paths"]] == ["encode", "decode"]
    for path in ran.json["paths"]:
        assert path["images"] == 9
        assert set(path["seconds"]) == {"reading", "network", "writing", "whole"}
        assert all(seconds > 0 for seconds in path["seconds"].values())
        slowest = max(("reading", "network", "writing"), key=path["seconds"].get)
        assert path["bound_by"] == slowest
    report = stae(*arguments).out
    assert "ran on the CPU" in report
    for command in ("encode", "decode"):
        assert f"{command} is bound by" in report
    assert {path: path.stat().st_mtime_ns for path in photos.rglob("*")} == before


def test_paths_of_several_folders_are_timed_together(stae, tiny, tmp_path):
    folders = [write_photos(tmp_path / name / "photos") for name in ("path", "network")]
    for number, folder in enumerate(folders):
        for path in [*folder.rglob("*.*")]:
            path.rename(path.with_stem(f"{path.stem}-{number}"))
    ran = stae("bench", "path", *folders, "--weights", tiny, "--device", "cpu", "--json")
    assert ran.code == 0, ran.err
    assert [path["images"] for path in ran.json["paths"]] == [18, 18]


def test_a_folder_may_be_called_like_a_command(stae, tiny, tmp_path, monkeypatch):
    write_photos(tmp_path / "network")
    monkeypatch.chdir(tmp_path)
    common = ("--weights", tiny, "--device", "cpu", "--json")
    for words in (("--path", "network"), ("--path=network",), ("path", "network")):
        ran = stae("bench", *words, *common)
        assert (ran.code, ran.json["paths"][0]["images"]) == (0, 9)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], ["nonsense", "`stae bench --help`"]),
        (["photos", "--size", "8"], ["photos", "`stae bench --help`"]),
        (["netwrok"], ["Did you mean 'network'?"]),
        (["--nonsense"], ["--nonsense", "`stae bench --help`"]),
        (["--size", "8", "network"], ["`--size` stands before `network`", "bench network --size"]),
        (["-q", "loop"], ["`--quiet` stands before `loop`"]),
        (["--path", "photos", "path", "photos"], ["`--path` stands before `path`"]),
        (["network", "photos"], ["photos", "`stae bench network --help`"]),
        (["network", "--path", "photos"], ["--path", "`stae bench network --help`"]),
        (["network", "--workers", "2"], ["--workers"]),
        (["path"], ["FOLDER", "`stae bench path --help`"]),
        (["path", "photos", "--size", "8"], ["--size", "`stae bench path --help`"]),
        (["loop", "--plot", "chart.png"], ["--plot", "`stae bench loop --help`"]),
        (["loop", "--transformer", "giant"], ["unknown transformer `giant`"]),
        (["--dtype", "float8"], ["'float8'", "'float16', 'bfloat16', 'float32'"]),
    ],
    ids=" ".join,
)
def test_misspelled_commands_are_refused(stae, arguments, words):
    stae("bench", *arguments).assert_fails(2, *words)


def test_help_shows_the_commands_and_each_has_its_own(stae):
    whole = stae("bench", "--help").out
    listed = whole.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == ["network", "path", "loop"]
    for command in ("network", "path", "loop"):
        assert stae("bench", command, "-h").out.startswith(f"Usage: stae bench {command} ")
    assert "--transformer" not in stae("bench", "network", "-h").out


def test_a_path_without_sound_images_is_an_error(stae, tiny, tmp_path):
    stae("bench", "--path", tmp_path / "absent").assert_fails(2, "no such file")
    (tmp_path / "photos").mkdir()
    stae("bench", "--path", tmp_path / "photos").assert_fails(1, "no inputs found")
    (tmp_path / "photos" / "damaged.jpg").write_bytes(b"no image")
    ran = stae("bench", "--path", tmp_path / "photos", "--weights", tiny, "--device", "cpu")
    ran.assert_fails(1, "none of the images can be read")


@pytest.fixture
def mite(monkeypatch):
    """A transformer that takes no time."""
    from stae_cli.benchmark.transformer import SIZES, TransformerSize

    monkeypatch.setitem(SIZES, "mite", TransformerSize(16, 2, 2))


@pytest.mark.usefixtures("mite")
@pytest.mark.parametrize("command", ["--loop", "loop"])
def test_encoding_is_timed_beside_a_training_step(stae, tiny, command):
    arguments = ("bench", command, "--transformer", "mite", "--size", "32x16", "--batch", "3")
    arguments += ("--weights", tiny, "--device", "cpu", "--seconds", "0")
    ran = stae(*arguments, "--json")
    assert ran.code == 0
    (result,) = ran.json["results"]
    assert result["case"] == {"width": 32, "height": 16, "batch": 3}
    assert (result["transformer"], result["tokens"]) == ("mite", 2)
    assert result["latent_bytes"] == 2 * 16 * 4 * 2
    for name in ("cached", "on_the_fly", "encoding", "share"):
        assert result[name]["median"] > 0
    assert result["caching_pays"] == (result["share"]["median"] >= 0.1)
    assert ran.json["step_dtype"] == "float32"
    report = stae(*arguments).out
    for words in ("cached latents", "encoding on the fly", "of a step", "M parameters"):
        assert words in report
    assert "caching pays" in report or "caching is not worth it" in report


@pytest.mark.usefixtures("mite")
def test_transformers_sizes_and_batches_all_meet(bench):
    ran = bench(
        "--loop", "--transformer", "mite", "--transformer", "mite",
        "--size", "16", "--size", "32", "--batch", "1", "--batch", "2", "--json", "--quiet",
    )  # fmt: skip
    assert ran.err == ""
    assert len(ran.json["results"]) == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--loop", "--transformer", "giant"], ["unknown transformer `giant`", "huge"]),
        (["--loop", "--size", "24"], ["not a multiple of 16"]),
        (["--loop", "--path", "photos"], ["`--loop` and `--path`"]),
    ],
    ids=lambda each: " ".join(each) if each[0].startswith("--") else "",
)
def test_loops_that_make_no_sense_are_refused(bench, arguments, words):
    bench(*arguments).assert_fails(2, *words)


@pytest.mark.parametrize(
    ("mode", "option"),
    [
        *((["--path", "photos"], [name, "8"]) for name in ("--size", "--batch", "--seconds")),
        (["--path", "photos"], ["--against", "reference"]),
        (["--path", "photos"], ["--plot", "chart.png"]),
        (["--path", "photos"], ["--transformer", "base"]),
        (["--loop"], ["--against", "reference"]),
        (["--loop"], ["--plot", "chart.png"]),
        (["--loop"], ["--workers", "2"]),
    ],
    ids=" ".join,
)
def test_options_that_would_be_ignored_are_refused(stae, mode, option):
    ran = stae("bench", *mode, *option)
    ran.assert_fails(2, f"`{option[0]}` does not go with `{mode[0]}`", "omit one of them")
