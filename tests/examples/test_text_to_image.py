"""The text-to-image tutorial as its README runs it: it learns, and draws in the size asked for."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from stae_cli.checkpoints.checkpoint import write_checkpoint
from stae_cli.network.architecture import Architecture, SecondStage
from tests.pictures import write_photos
from tests.seeded import seeded_tensors

TUTORIAL = Path(__file__).parents[2] / "examples" / "text_to_image"
README = TUTORIAL / "README.md"
MODULES = ("transformer", "pictures", "train", "sample")
SMALL = ("--width", "32", "--depth", "2", "--tokens", "60", "--short-side", "48", "--lr", "1e-2")


@pytest.fixture(scope="module")
def tutorial():
    """The tutorial's modules, which lie in no package."""
    sys.path.insert(0, str(TUTORIAL))
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(TUTORIAL))
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture
def photos(tmp_path):
    """Photos of several sizes, one of them with a caption."""
    folder = write_photos(tmp_path / "red things", count=4)
    first = min(folder.rglob("*.*"))
    first.with_suffix(".txt").write_text("a Green-ish square\n", encoding="utf-8")
    return folder


@pytest.fixture
def train(tutorial, photos, tiny, tmp_path, capsys):
    def run(*arguments, steps=80):
        out = tmp_path / "model.pt"
        options = ["--out", out, "--weights", tiny, "--device", "cpu", "--steps", steps, *arguments]
        tutorial["train"].main([str(photos), *SMALL, *map(str, options)])
        return out, [float(x) for x in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]

    return run


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_the_loss_falls_and_samples_have_the_size_asked_for(train, tutorial, tmp_path):
    model, losses = train()
    assert losses[-1] < 0.9 * losses[0]
    out = tmp_path / "samples"
    sizes = ["--size", "64x32", "--size", "25x50"]
    tutorial["sample"].main(
        [str(model), "a square", "", *sizes, "--steps", "3", "--device", "cpu", "--out", str(out)]
    )
    drawn = [size_of(path) for path in sorted(out.iterdir())]
    assert drawn == [(64, 32), (25, 50)] * 2


def test_latents_from_the_cache_train_as_well(stae, train, photos, tiny, other_tiny, tmp_path):
    options = ("--short-side", 48, "--edges", "crop")
    assert stae("encode", photos, tmp_path / "latents", "--weights", tiny, *options).code == 0
    _, losses = train("--latents", tmp_path / "latents")
    assert losses[-1] < 0.9 * losses[0]
    stae("encode", photos, tmp_path / "others", "--weights", other_tiny, *options)
    with pytest.raises(SystemExit, match="--weights"):
        train("--latents", tmp_path / "others")


def test_a_network_of_two_stages_trains_and_draws_as_well(stae, train, photos, tutorial, tmp_path):
    """A token is 2x2 positions here too: 64x64 pixels, 4 times as many numbers as there."""
    for path in photos.rglob("*.png"):
        with Image.open(path) as image:
            image.resize((4 * image.width, 4 * image.height)).save(path)
    sizes = Architecture("two", width=32, head_width=8, second=SecondStage(64))
    write_checkpoint(two := tmp_path / "two.safetensors", seeded_tensors(sizes), sizes, {})
    model, losses = train("--weights", two, "--short-side", 64, steps=20)
    assert losses
    out, options = tmp_path / "samples", ["--size", "100x64", "--steps", "2", "--device", "cpu"]
    tutorial["sample"].main([str(model), "a square", *options, "--out", str(out)])
    assert [size_of(path) for path in out.iterdir()] == [(100, 64)]
    folder, edges = tmp_path / "latents", ("--short-side", 64, "--edges", "crop")
    assert stae("encode", photos, folder, "--weights", two, *edges).code == 0
    assert train("--weights", two, "--latents", folder, steps=20)[1]


def test_captions_lie_beside_the_photos_or_are_their_folders_name(tutorial, photos):
    captions = [each.caption for each in tutorial["pictures"].find_photos(photos)]
    assert captions[0] == "a Green-ish square"
    assert set(captions[1:]) <= {"red things", *(p.name for p in photos.rglob("*") if p.is_dir())}
    numbers = tutorial["transformer"].word_numbers
    assert numbers("a Green-ish square") == [*numbers("A green"), *numbers("ish, square!")]


@pytest.fixture
def network(tutorial):
    torch.manual_seed(0)
    network = tutorial["transformer"].Transformer(tutorial["transformer"].Size(64, 32, 2))
    for parameter in network.parameters():  # so that no gate is shut
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


def velocity(network, tutorial, latents, captions):
    packed = tutorial["transformer"].merged(latents)
    times = torch.linspace(0.2, 0.8, len(latents))
    return packed, network(packed, times, captions)


def test_pictures_of_a_batch_do_not_see_each_other(network, tutorial):
    latents = [torch.randn(16, 4, 6), torch.randn(16, 8, 2), torch.randn(16, 6, 6)]
    captions = ["one", "", "two words"]
    packed, together = velocity(network, tutorial, latents, captions)
    parts = together.split(packed.counts)
    times = torch.linspace(0.2, 0.8, 3)
    for index, part in enumerate(parts):
        alone = tutorial["transformer"].merged([latents[index]])
        single = network(alone, times[index : index + 1], [captions[index]])
        torch.testing.assert_close(part, single, rtol=0, atol=1e-4)


def test_position_time_and_caption_all_matter(network, tutorial):
    flat = torch.ones(16, 4, 8)
    _, base = velocity(network, tutorial, [flat], ["red"])
    assert (base - base[0]).abs().max() > 1e-3  # equal tokens, told apart by their places
    _, other = velocity(network, tutorial, [flat], ["blue"])
    assert (base - other).abs().max() > 1e-3
    packed = tutorial["transformer"].merged([flat])
    assert (base - network(packed, torch.tensor([0.9]), ["red"])).abs().max() > 1e-3


def test_rotations_depend_on_distances_alone(tutorial):
    layout = tutorial["transformer"].Layout.of(((5, 7),), 32, torch.device("cpu"))
    q, k = torch.randn(1, 1, 32).expand(35, 1, 32), torch.randn(1, 1, 32).expand(35, 1, 32)
    scores = layout.rotated(q)[:, 0] @ layout.rotated(k)[:, 0].T
    torch.testing.assert_close(scores[0, 9], scores[8, 17], rtol=0, atol=1e-4)  # 1 down, 2 right
    assert not torch.allclose(scores[0, 9], scores[0, 15], atol=1e-3)  # 2 down, 1 right


def test_merging_is_undone(tutorial):
    latents = [torch.randn(16, 5, 6), torch.randn(16, 2, 9)]
    again = tutorial["transformer"].unmerged(tutorial["transformer"].merged(latents))
    assert torch.equal(again[0], latents[0][:, :4])
    assert torch.equal(again[1], latents[1][:, :, :8])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_attention_on_cuda_is_that_of_the_cpu(tutorial):
    room = tutorial["transformer"]
    sizes = ((4, 6), (9, 3), (1, 1))
    q, k, v = (torch.randn(52, 2, 32).bfloat16() for _ in range(3))
    layout = room.Layout.of(sizes, 32, torch.device("cpu"))
    expected = room.attention_within(q.float(), k.float(), v.float(), layout)
    placed = room.Layout.of(sizes, 32, torch.device("cuda"))
    found = room.attention_within(q.cuda(), k.cuda(), v.cuda(), placed)
    torch.testing.assert_close(found.float().cpu(), expected, rtol=0, atol=0.03)


def test_commands_in_its_readme_are_understood(tutorial, capsys):
    lines = re.findall(r"^\$ python (\w+)\.py .*", text := README.read_text("utf-8"), re.MULTILINE)
    assert sorted(set(lines)) == ["sample", "train"]
    for line in re.findall(r"^\$ python (.*?)(?:  +#.*)?$", text, re.MULTILINE):
        script, *arguments = shlex.split(line)
        with pytest.raises(SystemExit):
            tutorial[script.removesuffix(".py")].main(["--help"])
        known = capsys.readouterr().out
        for flag in (word for word in arguments if word.startswith("--")):
            assert flag in known
