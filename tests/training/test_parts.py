"""The small parts of the loop: the clock, the rate, the outer step, the average, the state file."""

import numpy as np
import pytest
import torch
from PIL import Image

from stae_cli import charts
from stae_cli.errors import StaeError, UsageError
from stae_cli.training.evaluation import latent_statistics
from stae_cli.training.loop import Average, Clock, learning_rate
from stae_cli.training.optimizers import Snoo
from stae_cli.training.photos import Crops, load_photos
from stae_cli.training.pictures import draw_curve
from stae_cli.training.recipe import Recipe, differences
from stae_cli.training.state import FORMAT, Log, State, load_state, save_state
from tests.seeded import TINY, seeded_model
from tests.svg import shapes_of, texts_of

NAMES = ("training crops", "validation photos")  # of the lines of a curve


def test_time_in_which_the_process_was_stopped_hardly_counts():
    clock = Clock()
    for duration in (2.0, 1.0, 1.0, 1.0, 600.0, 1.0):
        clock.add(duration)
    assert clock.seconds == pytest.approx(10.0)


def test_a_step_that_compiles_first_counts_in_full():
    clock = Clock(100.0)
    clock.add(30.0)
    assert clock.seconds == pytest.approx(130.0)


def test_rate_rises_and_falls_to_zero():
    rates = [learning_rate(1.0, step=step, warmup=10, progress=step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert max(rates) == rates[9]
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[50] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)


def descended(momentum, every, rate=0.5, steps=12):
    """Where plain SGD on x^2 arrives inside the outer step."""
    x = torch.nn.Parameter(torch.tensor([4.0, -2.0], dtype=torch.float64))
    inner = torch.optim.SGD([x], lr=0.1)
    outer = Snoo([x], learning_rate=rate, momentum=momentum, every=every)
    for step in range(1, steps + 1):
        inner.zero_grad()
        x.square().sum().backward()
        inner.step()
        outer.step(step)
    return x.detach()


def test_snoo_without_momentum_is_lookahead():
    slow = fast = torch.tensor([4.0, -2.0], dtype=torch.float64)
    for step in range(1, 13):
        fast = fast - 0.1 * 2 * fast
        if step % 3 == 0:
            slow = slow + 0.5 * (fast - slow)
            fast = slow
    assert torch.allclose(descended(0.0, 3), fast, atol=1e-15)


def test_snoo_with_momentum_is_nesterov():
    slow = fast = torch.tensor([4.0, -2.0], dtype=torch.float64)
    velocity = None
    for step in range(1, 13):
        fast = fast - 0.1 * 2 * fast
        if step % 3 == 0:
            gradient = slow - fast
            velocity = gradient if velocity is None else 0.67 * velocity + gradient
            slow = slow - 0.67 * (gradient + 0.67 * velocity)
            fast = slow
    assert torch.allclose(descended(0.67, 3, rate=0.67), fast, atol=1e-14)


def test_average_follows_the_weights():
    model = seeded_model(TINY)
    average = Average(model, decay=0.5)
    before = model.decoder[0].positions.detach().clone()
    with torch.no_grad():
        model.decoder[0].positions.add_(1)
    average.update(model, step=100)
    assert torch.allclose(average.model.decoder[0].positions, before + 0.5)
    assert not any(p.requires_grad for p in average.model.parameters())


@pytest.mark.parametrize(
    "log",
    [
        [],
        [{"step": 0, "psnr": None}, {"step": 10, "loss": 0.0}],
        [{"step": 0, "psnr": 30.5}, {"step": 10, "loss": 0.0}, {"step": 10, "psnr": None}],
    ],
)
def test_a_curve_leaves_infinity_out(tmp_path, log):
    draw_curve(log, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width == 2000
    draw_curve(log, tmp_path / "curve.svg")
    names = [text for text in texts_of(tmp_path / "curve.svg") if text in NAMES]
    finite = any(line.get("psnr") is not None for line in log)
    assert names == ["validation photos"] * finite


def test_a_curve_shows_training_and_validation(tmp_path):
    log = [{"step": 0, "psnr": 20.0}]
    log += [{"step": step, "loss": 0.02 / step, "psnr": 20 + step / 10} for step in (10, 20, 40)]
    draw_curve(log, tmp_path / "curve.svg")
    trained, validated = (
        shapes_of(tmp_path / "curve.svg", stroke=colour)[0] for colour in (charts.GREY, charts.BLUE)
    )
    assert (len(trained), len(validated)) == (3, 4)
    across, down = np.transpose(validated)
    assert (across - across[0]) / np.ptp(across) == pytest.approx([0, 0.25, 0.5, 1])
    assert (down[0] - down) / np.ptp(down) == pytest.approx([0, 0.25, 0.5, 1])
    found = texts_of(tmp_path / "curve.svg")
    assert {*NAMES, "PSNR in dB over steps", "Validation photos: 24.00 dB at the end."} <= {*found}


def test_latents_that_are_all_the_same_have_no_scale(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    photos = load_photos([tmp_path], crop=16, memory=1 << 20)
    crops = Crops(photos, crop=16, batch=2, seed=0, device=torch.device("cpu"))
    model = seeded_model(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert latent_statistics(model, crops).scale is None


def test_recipe_tells_what_differs():
    first, second = Recipe("pca", steps=5), Recipe("pca", steps=6, snoo=True)
    said = differences(first.describe(), second.describe())
    assert said == ["snoo was False, now True", "steps was 5, now 6"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": None}, "how long"),
        ({"minutes": 1.0}, "how long"),
        ({"crop": 60}, "not a multiple of the patch"),
        ({"batch": 9}, "shared by 2 processes"),
    ],
)
def test_impossible_recipes_are_refused(changes, words):
    recipe = Recipe(**({"start": "pca", "steps": 5} | changes))
    with pytest.raises(UsageError, match=words):
        recipe.check(patch=8, processes=2)


def state_after(step, **loop):
    return State("{}", None, {"step": step, "average": {}, **loop})


def test_a_full_disk_leaves_the_previous_state(tmp_path):
    """/dev/full fails on every write, as a full disk does."""
    path = tmp_path / "state.pt"
    save_state(path, state_after(1))
    (tmp_path / ".state.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(StaeError, match="cannot save the training state"):
        save_state(path, state_after(2, weights=torch.zeros(1 << 20)))
    assert load_state(path) == state_after(1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.pt"]


@pytest.mark.parametrize(
    "saved",
    [
        [],
        torch.zeros(3),
        {},
        {"format": FORMAT},
        {"format": FORMAT, "settings": "{}", "replaces": None, "loop": []},
        {"format": FORMAT, "settings": "{}", "replaces": None, "loop": {"average": 3}},
        {"format": FORMAT, "settings": "[]", "replaces": None, "loop": {"average": {}}},
        {"format": FORMAT, "settings": "{", "replaces": None, "loop": {"average": {}}},
        {"format": FORMAT, "settings": None, "replaces": None, "loop": {"average": {}}},
    ],
)
def test_what_is_no_state_is_an_error_with_a_remedy(tmp_path, saved):
    torch.save(saved, tmp_path / "state.pt")
    with pytest.raises(StaeError, match="damaged") as caught:
        load_state(tmp_path / "state.pt")
    assert "remove it" in caught.value.hint


def test_a_cut_state_is_an_error_with_a_remedy(tmp_path):
    path = tmp_path / "state.pt"
    save_state(path, state_after(1, weights=torch.zeros(100)))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(StaeError, match="damaged"):
        load_state(path)
    torch.save({"format": 1}, path)
    with pytest.raises(StaeError, match="another version"):
        load_state(path)
    assert load_state(tmp_path / "absent.pt") is None


def test_damaged_lines_of_a_log_are_skipped(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    assert log.read() == []
    good = [{"step": 0, "psnr": -3.5}, {"step": 10, "loss": 0.25}, {"step": 20, "psnr": None}]
    for line in good:
        log.write(line)
    odd = [b"\xff\xfe", b"3", b"[]", b"{}", b'{"step":"x"}', b'{"step":30,"loss":"x"}', b'{"st']
    odd += [
        b'{"step":30,"psnr":[]}x',
        b'{"step":30,"psnr":{"a":1}}',
        b'{"step":30,"loss":NaN}',
        b'{"step":30,"loss":-1}',
    ]
    log.path.write_bytes(log.path.read_bytes() + b"\n".join(odd))
    assert log.read() == good
    log.cut(10)
    assert log.read() == good[:2]
    (tmp_path / "folder").mkdir()
    with pytest.raises(StaeError, match="cannot read"):
        Log(tmp_path / "folder").read()
