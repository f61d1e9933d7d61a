"""Charts: files that are whole and the same each time, whatever a caller's settings are."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from stae_cli import charts
from stae_cli.errors import StaeError, UsageError
from stae_cli.storage.temp_files import TEMPORARY
from tests.svg import texts_of


def simple(title="a title", **texts):
    figure = charts.new_figure(6, 2, title=title, **texts)
    figure.subplots().plot([1, 2, 3], [3, 1, 2])
    return figure


def written(path, draw=simple):
    charts.write(path, draw, hint="try another")
    return path.read_bytes()


def test_a_png_is_on_white_paper_and_its_texts_add_to_its_height(tmp_path):
    written(tmp_path / "a.png")
    written(tmp_path / "b.PNG", lambda: simple(subtitle="one line", note="another"))
    with Image.open(tmp_path / "a.png") as plain, Image.open(tmp_path / "b.PNG") as full:
        assert (plain.format, full.format) == ("PNG", "PNG")
        assert plain.width == full.width == 1200
        assert full.height > plain.height > 400
        assert plain.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_text_of_an_svg_is_text_in_as_many_lines_as_it_needs(tmp_path):
    long = "a machine with many cores " * 9
    written(tmp_path / "a.svg", lambda: simple("50 $ and $x^2$", subtitle=long, note="  "))
    found = texts_of(tmp_path / "a.svg")
    assert "50 $ and $x^2$" in found
    lines = [text for text in found if "machine" in text]
    assert len(lines) > 2
    assert " ".join(lines) == long.strip()


@pytest.mark.parametrize("suffix", charts.SUFFIXES)
def test_files_are_the_same_every_time(tmp_path, suffix):
    first, second = (written(tmp_path / f"{name}{suffix}") for name in ("a", "b"))
    assert first == second
    assert b"Matplotlib" not in first
    assert b"<dc:date>" not in first


def test_settings_of_a_caller_neither_matter_nor_change(tmp_path):
    expected = written(tmp_path / "a.svg")
    with matplotlib.rc_context({"font.size": 30, "figure.facecolor": "red", "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        assert written(tmp_path / "b.svg") == expected
        assert dict(matplotlib.rcParams) == before


def test_threads_draw_at_the_same_time(tmp_path):
    before = dict(matplotlib.rcParams)
    expected = written(tmp_path / "a.svg")
    with ThreadPoolExecutor(4) as pool:
        drawn = pool.map(written, [tmp_path / f"{number}.svg" for number in range(12)])
    assert set(drawn) == {expected}
    assert dict(matplotlib.rcParams) == before


def test_letters_that_the_font_lacks_are_no_warning(tmp_path):
    written(tmp_path / "a.png", lambda: simple("重み"))
    written(tmp_path / "a.svg", lambda: simple("重み"))
    assert "重み" in texts_of(tmp_path / "a.svg")


def test_no_window_is_ever_involved(tmp_path):
    program = (
        "import sys; from pathlib import Path; from tests.test_charts import written\n"
        f"written(Path({str(tmp_path / 'a.png')!r}))\n"
        "sys.exit('pyplot' if 'matplotlib.pyplot' in sys.modules else None)"
    )
    root = Path(__file__).parents[1]
    ran = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_importing_the_module_does_not_load_the_library():
    program = "import sys, stae_cli.charts; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_target_that_cannot_be_written_is_seen_early(tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        charts.check_target(tmp_path / "absent" / "chart.png")
    for name in ("chart.pdf", "chart", ".png"):
        with pytest.raises(UsageError, match=r"does not end in \.png or \.svg"):
            charts.check_target(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        charts.check_target(tmp_path / "folder.png")
    charts.check_target(tmp_path / "chart.SVG")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder closed to everybody")
def test_a_folder_that_takes_no_files_is_seen_early():
    with pytest.raises(StaeError, match=r"cannot write `/proc/chart\.png`") as caught:
        charts.check_target(Path("/proc/chart.png"))
    assert "--plot" in caught.value.hint


def test_a_failure_to_write_names_the_file(tmp_path):
    with pytest.raises(StaeError, match=r"cannot write .*absent") as caught:
        written(tmp_path / "absent" / "chart.png")
    assert caught.value.hint == "try another"


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_write_that_breaks_leaves_the_chart_before_and_nothing_else(tmp_path):
    path = tmp_path / "chart.png"
    before = written(path)
    program = (
        "import resource, sys; from pathlib import Path; from tests.test_charts import written\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"written(Path({str(path)!r}))\n"
    )
    root = Path(__file__).parents[1]
    ran = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert "StaeError: cannot write" in ran.stderr
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["chart.png"]


def test_runs_know_a_temporary_file_of_a_chart(tmp_path):
    assert TEMPORARY.fullmatch(charts._beside(tmp_path / "chart.png").name)


def test_nothing_is_written_of_a_figure_that_fails(tmp_path):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        written(tmp_path / "chart.png", fail)
    assert list(tmp_path.iterdir()) == []
