"""The walls: which rooms may import which, and what must stay out of a quick start."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "stae_cli"
FLOORS = {
    "cli": 3,
    "pipeline": 2, "benchmark": 2, "training": 2,
    "files": 1, "batching": 1, "model": 1, "metrics": 1,
    "errors": 0, "interrupts": 0, "temporaries": 0,
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOT = {"__init__", "__main__"}


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path):
    """Rooms of this package that a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "stae_cli" and len(parts) > 1 and parts[1] in FLOORS:
                yield parts[1]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    if room(path) in ROOT:
        return
    for imported in imported_rooms(path):
        assert imported == room(path) or FLOORS[imported] < FLOORS[room(path)], (
            f"{path.relative_to(PACKAGE)} imports {imported}"
        )


def test_every_room_has_a_floor():
    assert {room(path) for path in MODULES} - ROOT <= FLOORS.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_owns(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_the_disk_knows_no_torch():
    for path in (PACKAGE / "files").rglob("*.py"):
        assert "torch" not in imported_modules(path), path


def imported_modules(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def commands():
    from stae_cli.cli.main import app

    names = [(command.name,) for command in app.registered_commands]
    for sub in app.registered_groups:
        names.append((sub.name,))
        names += [(sub.name, command.name) for command in sub.typer_instance.registered_commands]
    return [(), *names]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_help_answers_without_torch(command):
    program = (
        "import sys\n"
        "from stae_cli.cli.main import main\n"
        f"code = main([*{command!r}, '--help'])\n"
        "heavy = {'torch', 'numpy', 'PIL', 'huggingface_hub', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(code or ','.join(sorted(heavy)) or None)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "Usage" in ran.stdout


def test_importing_the_package_does_not_import_torch():
    program = "import sys, stae_cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_public_names_are_there():
    import stae_cli

    assert stae_cli.Codec.__name__ == "Codec"
    assert stae_cli.StupidAE.__name__ == "StupidAE"
    assert set(stae_cli.__all__) <= set(dir(stae_cli))
    with pytest.raises(AttributeError, match="nothing"):
        _ = stae_cli.nothing
