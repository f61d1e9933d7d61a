"""The page in a real browser: what a person sees, clicks and types."""

import json

import numpy as np
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from stae_cli.metrics import Score
from stae_cli.report.page import Column, Photo, Report, render
from tests.browser import AXE, MISSING, served, started
from tests.report.made import FACTS, photos, with_noise, write_report

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "")

SIZES = [(390, 844), (1440, 1000)]
NAMES = "[...document.querySelectorAll('.tile .name')].map((e) => e.textContent)"


@pytest.fixture(scope="module")
def browser():
    with started() as browser:
        yield browser


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A report on one autoencoder: photo-000 is the worst, photo-011 the best."""
    originals = photos(12)
    made = {key: with_noise(p, 40 - 3 * n) for n, (key, p) in enumerate(originals.items())}
    return write_report(tmp_path_factory.mktemp("one"), originals, {"tiny": made})


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A report on three: `good` is best in all pictures but photo-002, where `fair` is."""
    originals = photos(6)
    strengths = {"good": 4, "fair": 12, "poor": 40}
    made = {
        name: {key: with_noise(p, strength) for key, p in originals.items()}
        for name, strength in strengths.items()
    }
    made["fair"]["photo-002.jpg"] = with_noise(originals["photo-002.jpg"], 1)
    return write_report(tmp_path_factory.mktemp("three"), originals, made)


def address(folder):
    return (folder / "index.html").as_uri()


def open_photo(browser, folder, name, **window):
    browser.open(address(folder), **window)
    browser.run("location.hash = '#photo=' + encodeURIComponent(arguments[0])", name)
    loaded(browser)


def loaded(browser):
    browser.wait(
        "document.getElementById('viewer').open && ['left', 'right', 'under', 'over'].every("
        "(id) => document.getElementById(id).complete && document.getElementById(id).naturalWidth)"
    )


def settled(browser, find):
    """What `find` sees once two frames have been drawn."""
    browser.driver.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
    )
    return find()


@pytest.mark.parametrize("how", ["from disk", "from a server"])
def test_it_opens_without_a_network(browser, one, how):
    with served(one) as server:
        base = one.as_uri() if how == "from disk" else server
        browser.open(f"{base}/index.html")
        browser.wait("document.querySelectorAll('.tile img').length === 12")
        browser.wait("[...document.querySelectorAll('.tile img')].every((i) => i.naturalWidth > 0)")
        browser.find(".tile a").click()
        loaded(browser)
        used = browser.requests()
        assert any(url.endswith("original.png") for url in used)
        assert all(url.startswith((base, "data:")) for url in used)
        assert browser.complaints() == []


def test_the_worst_comes_first_and_sorting_works(browser, one):
    browser.open(address(one))
    names = [f"photo-{n:03}.jpg" for n in range(12)]
    assert browser.wait(NAMES) == names
    Select(browser.find("#order")).select_by_visible_text("best first")
    assert browser.wait(NAMES) == names[::-1]
    for key, first, last in [
        ("ssim", "worst first", "best first"),
        ("size", "smallest first", "largest first"),
        ("name", "A to Z", "Z to A"),
    ]:
        Select(browser.find("#sort")).select_by_value(key)
        shown = browser.wait(NAMES)
        assert browser.texts("#order option") == [first, last]
        assert sorted(shown) == names
        if key != "ssim":
            assert shown == names
            Select(browser.find("#order")).select_by_visible_text(last)
            assert browser.wait(NAMES) == names[::-1]
    scores = [float(text.split("·")[1]) for text in browser.texts(".tile .score")]
    assert len(scores) == 12


def test_search_and_its_keys(browser, one):
    browser.open(address(one))
    browser.wait(NAMES)
    browser.press("/")
    assert browser.run("return document.activeElement.id") == "search"
    browser.press("PHOTO 01")
    assert browser.wait(NAMES) == ["photo-001.jpg", "photo-010.jpg", "photo-011.jpg"]
    assert browser.find("#count").text == "3 of 12"
    browser.press("nothing")
    assert browser.find("#nothing").is_displayed()
    browser.press(Keys.ESCAPE)
    assert browser.find("#count").text == "12 pictures"
    assert not browser.find("#nothing").is_displayed()


def test_arrows_move_through_the_gallery_and_the_viewer(browser, one):
    browser.open(address(one))
    browser.wait(NAMES)
    per_row = browser.run("return document.querySelector('.row').children.length")
    focused = "return document.activeElement.querySelector('.name')?.textContent"
    browser.press("/", Keys.ARROW_DOWN)
    assert browser.run(focused) == "photo-000.jpg"
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert browser.run(focused) == f"photo-{1 + per_row:03}.jpg"
    browser.press(Keys.ARROW_UP, Keys.ENTER)
    loaded(browser)
    assert browser.find("#viewer-name").text == "photo-001.jpg"
    assert browser.find("#position").text == "2 of 12"
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    browser.wait("document.getElementById('viewer-name').textContent === 'photo-003.jpg'")
    browser.press(Keys.ARROW_LEFT)
    browser.wait("document.getElementById('viewer-name').textContent === 'photo-002.jpg'")
    browser.press(Keys.ESCAPE)
    browser.wait("!document.getElementById('viewer').open && !location.hash.includes('photo')")
    assert browser.run(focused) == "photo-002.jpg"


def test_back_closes_the_viewer_and_an_address_opens_it(browser, one):
    browser.open(address(one))
    browser.wait(NAMES)
    browser.find(".tile a").click()
    loaded(browser)
    browser.driver.back()
    browser.wait("!document.getElementById('viewer').open")
    browser.open(f"{address(one)}#photo=photo-007.jpg")
    loaded(browser)
    assert browser.find("#viewer-name").text == "photo-007.jpg"
    browser.find("#close").click()
    browser.wait("!document.getElementById('viewer').open")
    browser.run("location.hash = '#photo=%E0%A4%A'")  # not UTF-8
    assert settled(browser, browser.complaints) == []


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One picture in one colour: red as the original, blue as the reconstruction."""
    red, blue = np.zeros((2, 600, 1800, 3), np.uint8)  # as wide as the window
    red[..., 0], blue[..., 2] = 200, 200
    return write_report(tmp_path_factory.mktemp("plain"), {"a.png": red}, {"b": {"a.png": blue}})


def percent(browser):
    """The zoom that is shown."""
    settled(browser, lambda: None)
    return int(browser.find("#scale").text.rstrip("%"))


def divider(browser):
    """The share of the stage's width that shows the original, from a row of the screen."""
    browser.wait("document.getElementById('slider').shadowRoot.getAnimations().length === 0")
    box = browser.find("#stage").rect
    row = settled(browser, browser.pixels)[int(box["y"] + box["height"] / 2) + 40]
    inside = row[int(box["x"]) : int(box["x"] + box["width"])].astype(int)
    red = (inside[:, 0] > 150) & (inside[:, 1:].max(1) < 50)
    blue = (inside[:, 2] > 150) & (inside[:, :2].max(1) < 50)
    assert red.sum() + blue.sum() > 0.9 * len(inside)
    if red.any() and blue.any():
        assert red.nonzero()[0].max() < blue.nonzero()[0].min()
    return red.sum() / (red.sum() + blue.sum())


def test_the_divider_moves_by_mouse_and_keyboard(browser, plain):
    open_photo(browser, plain, "a.png")
    assert divider(browser) == pytest.approx(0.5, abs=0.03)
    handle = browser.find("#handle")
    ActionChains(browser.driver).click_and_hold(handle).move_by_offset(-300, 0).release().perform()
    moved = divider(browser)
    assert 0.25 < moved < 0.35
    said = int(handle.get_attribute("aria-valuenow"))
    assert said == pytest.approx(50 - 100 * 300 / browser.find("#stage").rect["width"], abs=2)
    browser.run("arguments[0].focus()", handle)
    browser.press(Keys.END)
    assert divider(browser) > 0.97
    browser.press(Keys.HOME)
    assert divider(browser) < 0.03
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ARROW_UP)
    assert int(handle.get_attribute("aria-valuenow")) == 4
    assert browser.find("#viewer-name").text == "a.png"  # it did not go to another picture


def test_the_divider_moves_by_touch(browser, plain):
    open_photo(browser, plain, "a.png", width=390, height=844)
    box = browser.find("#handle").rect
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def touch(kind, *points):
        points = [{"x": x, "y": y} for x, y in points]
        browser.driver.execute_cdp_cmd(
            "Input.dispatchTouchEvent", {"type": kind, "touchPoints": points}
        )

    touch("touchStart", (x, y))
    for step in range(1, 11):
        touch("touchMove", (x + 10 * step, y))
    touch("touchEnd")
    assert divider(browser) > 0.65
    before = percent(browser)
    touch("touchStart", (40, y + 100), (140, y + 100))
    for step in range(1, 11):
        touch("touchMove", (40, y + 100), (140 + 20 * step, y + 100))
    touch("touchEnd")
    browser.wait("document.getElementById('scale').textContent !== arguments[0]", f"{before}%")
    assert percent(browser) == pytest.approx(3 * before, rel=0.1)  # as far as the fingers went


def test_the_difference_is_amplified_eightfold(browser, tmp_path):
    original = np.full((64, 96, 3), 100, np.uint8)
    made = original + np.array([5, 0, 20], np.uint8)
    made[:, 48:] = 98
    write_report(tmp_path, {"a.png": original}, {"b": {"a.png": made}})
    open_photo(browser, tmp_path, "a.png")
    browser.press("d")
    assert browser.find("#toggle").get_attribute("aria-pressed") == "true"
    assert browser.find("#right-label").text.startswith("|b")
    box = browser.find("#stage").rect
    shown = settled(browser, browser.pixels)
    middle = int(box["y"] + box["height"] / 2)
    left = shown[middle, int(box["x"] + box["width"] * 0.4)]
    right = shown[middle, int(box["x"] + box["width"] * 0.6)]
    assert np.abs(left.astype(int) - [40, 0, 160]).max() <= 2
    assert np.abs(right.astype(int) - 16).max() <= 2
    browser.press("d")
    assert settled(browser, browser.pixels)[middle, int(box["x"] + box["width"] * 0.4)][1] > 90


def test_zoom_shows_single_pixels(browser, tmp_path):
    board = np.zeros((64, 96, 3), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 255
    write_report(tmp_path, {"a.png": board}, {"b": {"a.png": 255 - board}})
    open_photo(browser, tmp_path, "a.png")
    browser.press("1")
    browser.wait("document.getElementById('scale').textContent === '100%'")
    browser.press(*"++++++++++++")
    browser.wait("document.getElementById('scale').textContent === '4800%'")
    box = browser.find("#stage").rect
    row = settled(browser, browser.pixels)[int(box["y"] + box["height"] * 0.8)]
    left = row[int(box["x"]) : int(box["x"] + box["width"] / 2 - 30), 0]
    assert np.isin(left, [0, 255]).all()  # nothing is blurred
    edges = np.flatnonzero(np.diff(left.astype(int)))
    assert set(np.diff(edges).tolist()) == {48}
    stage = browser.find("#stage")
    before = browser.pixels()
    ActionChains(browser.driver).move_to_element_with_offset(
        stage, -300, 0
    ).click_and_hold().move_by_offset(24, 24).release().perform()
    assert (settled(browser, browser.pixels) != before).any()
    browser.press("0")
    browser.wait("document.getElementById('scale').textContent === '800%'")


@pytest.mark.parametrize("size", [(64, 64), (101, 77)])  # in the middle of a pixel, or of four
def test_at_one_to_one_every_pixel_is_that_of_the_picture(browser, tmp_path, size):
    board = np.indices(size[::-1]).sum(0) % 2 * np.uint8(255)
    board = np.repeat(board[..., None], 3, 2).astype(np.uint8)
    write_report(tmp_path, {"a.png": board}, {"b": {"a.png": board}})
    open_photo(browser, tmp_path, "a.png")
    browser.press("1")
    browser.wait("document.getElementById('scale').textContent === '100%'")
    box = browser.find("#stage").rect
    middle = int(box["y"] + box["height"] / 2) + 25
    row = settled(browser, browser.pixels)[middle]
    left = int(box["x"] + box["width"] / 2 - size[0] / 2) + 2
    shown = row[left : left + size[0] // 2 - 26, 0].astype(int)
    assert (np.abs(np.diff(shown)) == 255).all()


def test_a_wheel_zooms_as_far_as_it_turns(browser, plain):
    open_photo(browser, plain, "a.png")
    turn = (
        "document.getElementById('stage').dispatchEvent(new WheelEvent('wheel', {deltaY:"
        " arguments[0], clientX: 300, clientY: 400, cancelable: true}))"
    )
    before = percent(browser)
    for _ in range(20):
        browser.run(turn, -1)  # of a trackpad
    assert before <= percent(browser) < 1.1 * before
    browser.run(turn, 0)
    assert before <= percent(browser) < 1.1 * before
    for _ in range(5):
        browser.run(turn, -100)
    assert percent(browser) > 2 * before


def test_zoom_stays_when_the_window_changes_and_keys_move(browser, plain):
    open_photo(browser, plain, "a.png")
    browser.press("1", Keys.ARROW_DOWN)
    moved = "new DOMMatrix(document.querySelector('.sheet').style.transform).f"
    assert settled(browser, lambda: browser.run(f"return {moved}")) < -40
    size = {"width": 1200, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.wait("innerWidth === 1200")
    assert percent(browser) == 100
    assert browser.run("return scrollY") == 0


def test_many_steps_end_where_the_gallery_then_is(browser, crowd):
    browser.open(address(crowd))
    Select(browser.find("#sort")).select_by_value("name")
    browser.wait("document.querySelector('.tile a')")
    browser.find(".tile a").click()
    browser.wait("document.getElementById('viewer').open")
    browser.press(*[Keys.ARROW_RIGHT] * 60)
    assert browser.find("#position").text == "61 of 2000"
    browser.wait("location.hash.includes('00')")
    browser.press(Keys.ESCAPE)
    browser.wait("!location.hash.includes('photo') && scrollY > 500")
    focused = "document.activeElement.getBoundingClientRect()"
    settled(browser, lambda: None)
    tools = browser.run("return document.querySelector('.tools').getBoundingClientRect().bottom")
    top, bottom = browser.run(f"return [{focused}.top, {focused}.bottom]")
    assert tools <= top < bottom <= 1000
    assert not any("hrottling" in line for line in browser.complaints())


@pytest.mark.parametrize(("width", "height"), [*SIZES, (844, 390), (1024, 700)])
def test_many_with_long_names_fit_too(browser, tmp_path, width, height):
    names = [f"a-checkpoint-with-a-long-name-number-{n}" for n in range(8)]
    originals = photos(3)
    write_report(tmp_path, originals, dict.fromkeys(names, originals))
    browser.open(address(tmp_path), width=width, height=height)
    browser.run("document.querySelector('.tools').scrollIntoView()")
    browser.wait(NAMES)
    assert browser.run("return document.scrollingElement.scrollWidth <= innerWidth")
    open_photo(browser, tmp_path, "photo-001.jpg", width=width, height=height)
    assert browser.find("#stage").rect["height"] >= 0.44 * height
    outside = browser.run(
        "return ['close', 'next', 'stage'].filter((id) => { const b ="
        " document.getElementById(id).getBoundingClientRect(); return b.left < 0 ||"
        " b.right > innerWidth || b.top < 0 || b.bottom > innerHeight; })"
    )
    assert outside == []


def test_the_difference_stays_through_pictures_and_hides_the_divider(browser, three):
    open_photo(browser, three, "photo-001.jpg")
    browser.press("d", Keys.ARROW_RIGHT)
    loaded(browser)
    assert browser.find("#right-label").text.startswith("|good")
    browser.run("document.getElementById('handle').focus()")
    assert browser.run("return document.activeElement.id") != "handle"
    browser.press("c")
    assert browser.find("#right-label").text.startswith("|fair")
    assert "fair" in browser.find("#difference").get_attribute("aria-label")


def test_several_are_compared(browser, three):
    browser.open(address(three))
    rows = browser.texts(".summary tbody tr")
    assert [row.split()[0] for row in rows] == ["good", "fair", "poor"]
    assert ["in 5" in rows[0], "in 1" in rows[1], "in 0" in rows[2]] == [True] * 3
    assert browser.texts(".best") == browser.texts("tr:first-child :nth-child(-n+3).best")
    assert len(browser.texts(".best")) == 2
    Select(browser.find("#winner")).select_by_visible_text("fair is best")
    assert browser.wait(NAMES) == ["photo-002.jpg"]
    Select(browser.find("#winner")).select_by_visible_text("all pictures")
    browser.wait("document.querySelectorAll('.tile').length === 6")
    marks = browser.run(
        "return [...document.querySelectorAll('.tile .swatch')].map((e) => e.ariaLabel)"
    )
    assert sorted(marks) == ["fair is best"] + ["good is best"] * 5
    before = browser.texts(".tile .score b")[0]
    Select(browser.find("#column")).select_by_visible_text("poor")
    browser.wait(
        "document.querySelector('.tile .score b')?.textContent.replace(arguments[0], '')", before
    )
    open_photo(browser, three, "photo-001.jpg")
    sources = "['left', 'right', 'under', 'over'].map((id) => document.getElementById(id).src)"

    def suffixes():
        return [url.rpartition("photo-001.jpg.")[2] for url in browser.run(f"return {sources}")]

    assert suffixes() == ["original.png", "good.reconstruction.png"] * 2
    browser.press("c")
    assert suffixes() == ["original.png", "fair.reconstruction.png"] * 2
    poor = browser.find("#left-switch input[value='2']")
    ActionChains(browser.driver).click(poor).perform()
    assert suffixes() == ["poor.reconstruction.png", "fair.reconstruction.png"] * 2
    assert browser.find("#left").get_attribute("alt") == "Reconstruction by poor: photo-001.jpg"
    browser.press(Keys.ARROW_RIGHT)
    assert browser.find("#viewer-name").text != "photo-001.jpg"
    browser.press(Keys.ARROW_LEFT)
    assert browser.find("#viewer-name").text == "photo-001.jpg"
    browser.run("arguments[0].focus()", poor)
    browser.press(Keys.ARROW_LEFT)  # the switch's own key, while it has the focus
    assert suffixes() == ["fair.reconstruction.png"] * 4
    assert browser.find("#viewer-name").text == "photo-001.jpg"
    figures = browser.texts("#figures > span")
    assert [text.split()[0] for text in figures[1:]] == ["good", "fair", "poor"]


def test_hostile_names_are_only_names(browser, tmp_path):
    names = [
        "<script>window.hacked = 1<",
        "<img src=x onerror=window.hacked=1>.jpg",
        "\"quotes' & `ticks`.png",
        "two\nlines.png",
        "</script><b>.png",
        "שלום-עולם.png",
        "per%20cent?#hash.png",
        "back\\slash:colon.png",
    ]
    originals = dict(zip(names, photos(len(names)).values(), strict=True))
    made = {name: with_noise(pixels, 9) for name, pixels in originals.items()}
    failures = [("<i>bad</i>.jpg", "</ul><script>window.hacked=1</script>"), ("\udcff.jpg", "x")]
    write_report(tmp_path, originals, {"tiny": made}, failures=failures)
    browser.open(address(tmp_path))
    browser.wait("[...document.querySelectorAll('.tile img')].every((i) => i.naturalWidth > 0)")
    assert sorted(browser.wait(NAMES)) == sorted(names)
    for name in names:
        browser.run("location.hash = '#photo=' + encodeURIComponent(arguments[0])", name)
        browser.wait("document.getElementById('viewer-name').textContent === arguments[0]", name)
        loaded(browser)
    assert browser.run("return window.hacked ?? null") is None
    assert browser.texts(".failures li") == [f"{a}: {b}" for a, b in failures[:1]] + [
        "\\udcff.jpg: x"
    ]
    assert browser.complaints() == []


def test_a_picture_that_was_moved_is_reported(browser, tmp_path):
    write_report(tmp_path, photos(2), {"tiny": photos(2)})
    (tmp_path / "photo-001.jpg.original.png").unlink()
    browser.open(f"{address(tmp_path)}#photo=photo-001.jpg")
    browser.wait("!document.getElementById('missing').hidden")
    browser.press("c")
    assert browser.find("#missing").is_displayed()
    browser.press(Keys.ARROW_LEFT)
    browser.wait("document.getElementById('viewer-name').textContent === 'photo-000.jpg'")
    loaded(browser)
    assert not browser.find("#missing").is_displayed()
    assert "identical" in browser.find("#figures").text


@pytest.mark.skipif(not AXE.exists(), reason="needs axe-core: npm install --prefix tests/report")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_nothing_bars_people_out(browser, three, width, height, dark):
    browser.open(address(three), width=width, height=height, dark=dark)
    browser.wait(NAMES)
    browser.run("for (const each of document.querySelectorAll('details')) each.open = true")
    assert browser.axe() == []
    browser.run("location.hash = '#photo=photo-001.jpg'")
    loaded(browser)
    assert browser.axe() == []
    browser.press("d")
    assert browser.axe() == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_it_fits_the_window_in_both_themes(browser, three, width, height, dark):
    browser.open(address(three), width=width, height=height, dark=dark)
    browser.wait(NAMES)
    fits = "return document.scrollingElement.scrollWidth <= innerWidth"
    assert browser.run(fits)
    corner = browser.pixels()[5, 5]
    assert corner.max() < 60 if dark else corner.min() > 200
    tiles = browser.run(
        "return [...document.querySelectorAll('.tile')].map((t) => [t.clientHeight, "
        "t.querySelector('.score').getBoundingClientRect().bottom - t.getBoundingClientRect().top])"
    )
    assert all(bottom <= height for height, bottom in tiles)
    open_photo(browser, three, "photo-001.jpg", width=width, height=height, dark=dark)
    outside = browser.run(
        "return [...document.querySelectorAll('#viewer button, #stage, #handle, .side')].filter((e)"
        " => { const b = e.getBoundingClientRect(); return e.checkVisibility() && (b.left < 0 ||"
        " b.right > innerWidth || b.top < 0 || b.bottom > innerHeight); }).map((e) => e.id)"
    )
    assert outside == []
    assert browser.find("#stage").rect["height"] > 0.4 * height


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """A page of 2,000 pictures and three autoencoders; all share one file."""
    folder = tmp_path_factory.mktemp("crowd")
    small = write_report(folder, photos(1), {"a": photos(1)})
    names = [f"folder-{n % 7}/a-photo-with-a-long-name-{n:05}.jpg" for n in range(2000)]
    for place in {name.rpartition("/")[0] for name in names}:
        (folder / place).mkdir()
    for name in names[:300]:
        for suffix in ("thumbnail.jpg", "original.png", "a.reconstruction.png"):
            (folder / f"{name}.{suffix}").hardlink_to(small / f"photo-000.jpg.{suffix}")
    generator = np.random.default_rng(0)
    scores = [
        [Score(float(m), 10.0, float(s), 6144) for m, s in zip(*pair, strict=True)]
        for pair in generator.uniform(0.001, 0.9, (2000, 2, 3))
    ]
    columns = [Column(name, f"{name}.reconstruction.png", "", 1) for name in "abc"]
    shown = [Photo(n, 96, 64, s) for n, s in zip(names, scores, strict=True)]
    (folder / "index.html").write_text(render(Report(columns, shown, FACTS)), encoding="utf-8")
    return folder


def test_thousands_of_pictures_are_drawn_as_they_come_into_view(browser, crowd):
    assert (crowd / "index.html").stat().st_size < 1_000_000
    browser.open(address(crowd))
    Select(browser.find("#sort")).select_by_value("name")
    browser.run(
        "window.shifts = 0; new PerformanceObserver((list) => { for (const e of list.getEntries())"
        " window.shifts += e.value; }).observe({type: 'layout-shift', buffered: true})"
    )
    assert browser.find("#count").text == "2000 pictures"
    tall = browser.run("return document.scrollingElement.scrollHeight")
    most = 0
    for share in (0.1, 0.35, 0.7, 1):
        browser.run("scrollTo(0, arguments[0])", tall * share)
        browser.wait(
            "[...document.querySelectorAll('.tile')].some((e) => { const b ="
            " e.getBoundingClientRect(); return b.bottom > 100 && b.top < innerHeight; })"
        )
        most = max(most, browser.run("return document.querySelectorAll('.tile').length"))
    assert 10 < most < 200
    assert browser.texts(".tile .name")[-1] == "folder-6/a-photo-with-a-long-name-01994.jpg"
    assert browser.run("return document.scrollingElement.scrollHeight") == tall
    assert browser.run("return window.shifts") < 0.01
    errors = [line for line in browser.complaints() if "ERR_FILE_NOT_FOUND" not in line]
    assert errors == []


def test_the_page_holds_what_was_given(three):
    page = (three / "index.html").read_text(encoding="utf-8")
    start = page.index('id="data">') + len('id="data">')
    data = json.loads(page[start : page.index("</script>", start)])
    assert [column["name"] for column in data["columns"]] == ["good", "fair", "poor"]
    assert len(data["photos"]) == 6
