"""The documents and the program agree: what they show exists, and does what they say."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.test_architecture import ARROWS

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "examples" / "photos"
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [
    *PAGES,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("examples/*/README.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "stae_cli" / "weights" / "README.md",
]
LONGEST_README = 150  # lines
VARIABLES = {"STAE_WEIGHTS", "STAE_TRITON", "RAY_ADDRESS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"}
LAUNCHERS = {"WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"}
NAMES = {"ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "BUILTIN_NAMES"}
HUB = {"HF_HOME", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT"}
OFFLINE = ("encode", "decode", "roundtrip", "inspect", "verify", "stats")  # run where shown


def name_of(document):
    return document.relative_to(ROOT).as_posix()


def text_of(document):
    return document.read_text(encoding="utf-8")


def everything():
    return "\n".join(map(text_of, DOCUMENTS))


def blocks_of(document, *languages):
    pattern = rf"```(?:{'|'.join(languages)})\n(.*?)```"
    return re.findall(pattern, text_of(document), re.DOTALL)


def command_lines():
    """Every `stae ...` in a console block or between backticks, continuation lines joined."""
    for document in DOCUMENTS:
        for block in blocks_of(document, "console", "sh", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if found := re.search(r"(?:^|\s)(?:stae|-m stae_cli) (.*)", line):
                    yield found[1].partition(" #")[0]
        prose = re.sub(r"```.*?```", "", text_of(document), flags=re.DOTALL)
        yield from re.findall(r"`stae ([a-z][^`]*)`", prose)


def found_command(words):
    """The command that the first words name, those words, and the rest."""
    from typer.main import get_command

    from stae_cli.cli.main import app

    names, found, rest = [], get_command(app), list(words)
    while rest and rest[0] in getattr(found, "commands", {}):
        names.append(rest.pop(0))
        found = found.commands[names[-1]]
    return found, names, rest


def options_of(command):
    """A command's options, with those of its sub-commands."""
    flags = {flag for parameter in command.params for flag in parameter.opts}
    return flags.union(*map(options_of, getattr(command, "commands", {}).values()))


@pytest.mark.parametrize("line", sorted(set(command_lines())))
def test_command_lines_exist(line):
    words = shlex.split(line.replace("\\|", "|"))
    command, names, rest = found_command(words)
    flags = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
    assert names or flags == {"--help"}, line
    assert flags <= options_of(command) | {"--help", "-h"}, line


def test_every_command_is_in_the_readme():
    from stae_cli.cli.main import app

    for command in [*app.registered_commands, *app.registered_groups]:
        assert f"stae {command.name}" in text_of(README)


@pytest.mark.parametrize("name", ["encode", "decode", "roundtrip", "bench", "stats", "train"])
def test_every_option_of_the_main_commands_is_documented(name):
    text = "\n".join(map(text_of, PAGES))
    for flag in options_of(found_command([name])[0]):
        if flag.startswith("--"):
            assert re.search(rf"[` ]{flag}\b", text), flag


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = document.parent / path if path else document
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors_of(linked), target


def anchors_of(document):
    """The anchors of the headings, as GitHub makes them."""
    prose = re.sub(r"```.*?```", "", text_of(document), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_links_to_every_page():
    for page in PAGES[1:]:
        assert f"({name_of(page)})" in text_of(README)


def test_the_readme_is_short():
    assert len(text_of(README).splitlines()) <= LONGEST_README


def test_pages_say_whom_they_are_for():
    for page in PAGES[1:]:
        title, opening, *_ = text_of(page).split("\n\n")
        assert re.fullmatch(r"# .+", title), page
        assert opening.startswith("For "), page


def test_make_targets_exist():
    makefile = text_of(ROOT / "Makefile")
    for target in re.findall(r"(?:`|\$ )make ([a-z]+)", everything()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_no_placeholder_is_left():
    assert (
        set(re.findall(r"\b[A-Z]{2,}_[A-Z_]+", everything())) == VARIABLES | LAUNCHERS | HUB | NAMES
    )


def test_continuous_integration_runs_what_the_repository_says():
    assert "bash .ci/run" in text_of(ROOT / ".github" / "workflows" / "ci.yml")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with the example photos and their latents, made with the built-in checkpoint."""
    from stae_cli.cli.main import main

    folder = tmp_path_factory.mktemp("documents")
    shutil.copytree(PHOTOS, folder / "examples" / "photos")
    words = ["encode", folder / "examples" / "photos", folder / "latents", "--quiet"]
    assert main([*map(str, words), "--weights", "builtin"]) == 0
    return folder


@pytest.fixture
def workplace(prepared, tmp_path, monkeypatch):
    """A copy of it, and the working directory."""
    shutil.copytree(prepared, tmp_path / "work")  # with its times, which latents record
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize("page", [p for p in PAGES if blocks_of(p, "python")], ids=name_of)
def test_python_runs(page, workplace):
    program = compile("\n".join(blocks_of(page, "python")), page, "exec")
    exec(program, {"__name__": "__main__"})


def test_there_is_python_to_run():
    assert sum(len(blocks_of(page, "python")) for page in PAGES) >= 2
    assert blocks_of(README, "python")


def shown(page):
    """Commands in console blocks that show an output, with its lines."""
    for block in blocks_of(page, "console"):
        commands = []
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                commands.append((line.removeprefix("$ ").partition(" #")[0], []))
            else:
                commands[-1][1].append(line)
        if any(lines for _, lines in commands):
            yield from commands


@pytest.mark.parametrize("page", [p for p in PAGES if [*shown(p)]], ids=name_of)
def test_shown_output_is_what_a_command_prints(page, workplace, stae):
    if page == README:
        shutil.rmtree(workplace / "latents")  # it makes them
    for line, lines in shown(page):
        program, *words = shlex.split(line)
        if program == "cat":
            found = Path(words[0]).read_text(encoding="utf-8")
        else:
            assert program == "stae", line
            assert words[0] in OFFLINE, line
            ran = stae(*words)
            assert ran.code == 0, ran.err
            found = f"{ran.out}\n{ran.err}"
        assert stable(found.splitlines()) == stable(lines), line


def stable(lines):
    """Lines without what depends on the machine: times, rates, shares, last digits, the layout.

    Sorted, since stdout and stderr are captured apart.
    """
    numbers = re.compile(r"[-+]?\d+\.\d+|\d+%")
    words = (" ".join(numbers.sub("#", line).split()) for line in lines)
    return sorted(re.sub("─+", "─", line) for line in words if line)


def test_scripts_exist():
    for name in re.findall(r"python -m benchmarks\.(\w+)", everything()):
        assert (ROOT / "benchmarks" / f"{name}.py").exists(), name


def test_the_rooms_of_the_architecture_page_are_those_of_its_test():
    table = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", architecture_page(), re.MULTILINE)
    assert {room: set(re.findall(r"`(\w+)`", below)) for room, below in table} == ARROWS


@pytest.mark.parametrize("document", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_that_developers_are_sent_to_exist(document):
    rooms = "|".join(ARROWS)
    for path in re.findall(
        rf"`((?:{rooms}|tests|benchmarks)/[\w/]+(?:\.py)?)`", text_of(ROOT / document)
    ):
        assert (ROOT / path).exists() or (ROOT / "stae_cli" / path).exists(), path


def architecture_page():
    return text_of(ROOT / "docs" / "architecture.md")


@pytest.mark.parametrize("command", ["encode", "decode", "roundtrip", "verify", "stats", "train"])
def test_workers_write_only_where_something_is_written(stae, command):
    help_text = " ".join(stae(command, "--help").out.split())
    assert "Reading threads" in help_text
    assert ("as many writing ones" in help_text) == (command in ("encode", "decode", "roundtrip"))


def test_metavars_in_the_table_of_commands_are_those_of_the_help(stae):
    for command, words in re.findall(r"^\| `stae (\w+) ([^`]*)`", text_of(README), re.MULTILINE):
        usage = " ".join(stae(command, "--help").out.partition("\n\n")[0].split())
        for word in re.findall(r"[A-Z]{3,}", words.partition("--")[0]):
            assert word in usage, (command, word)
