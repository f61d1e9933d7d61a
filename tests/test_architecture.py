"""The walls: which rooms may import which, and what must stay out of a quick start."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "stae_cli"

# Each sub-package, and those it may import besides the ground; docs/architecture.md explains them.
GROUND = {"_version", "charts", "cores", "errors", "interrupts", "metrics", "scaling", "signatures"}
ARROWS = {
    "network": set(),
    "images": set(),
    "flow": set(),
    "report": set(),
    "storage": set(),
    "checkpoints": {"network", "storage"},
    "latents": {"storage", "images", "flow"},
    "codec": {"network"},
    "foreign": {"latents", "checkpoints", "storage"},
}
TOOLS = {"storage", "images", "network", "flow"}
ARROWS |= {
    "runs": {"report", "foreign", "latents", "codec", "checkpoints"} | TOOLS,
    "training": {"codec", "checkpoints"} | TOOLS,
    "export": {"foreign", "latents", "storage"},
    "verify": {"runs", "latents", "codec", "storage", "images", "flow"},
    "benchmark": {"runs", "latents", "codec", "checkpoints"} | TOOLS,
    "publishing": {"latents", "storage", "flow"},
    "cli": {
        "publishing",
        "export",
        "runs",
        "verify",
        "training",
        "benchmark",
        "foreign",
        "latents",
        "codec",
        "checkpoints",
    }
    | {"storage", "images", "network"},
}
# A method that users know, and the function that does its work in a room above.
EXCEPTIONS = {("stae_cli.network.stupid_ae", "stae_cli.checkpoints.checkpoint")}
# Rooms whose every module works without torch: reading a folder must not load it.
WITHOUT_TORCH = ("flow", "images", "latents", "publishing", "storage")
WITH_TORCH = {"stae_cli.latents.dataset"}


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module):
    """The sub-package, or the module of the ground, that a module belongs to."""
    return module.split(".")[1] if "." in module else "stae_cli"


def imported_by(path):
    """Modules of this package that a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("stae_cli"))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module and node.module.split(".")[0] == "stae_cli":
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    yield name if name in MODULES else node.module


IMPORTS = {name: set(imported_by(path)) - {name} for name, path in MODULES.items()}
INSIDE = {
    (name, imported)
    for name, found in IMPORTS.items()
    if name not in ("stae_cli", "stae_cli.__main__")
    for imported in found
} - EXCEPTIONS


def test_every_room_is_in_the_plan():
    rooms = {room_of(name) for name in MODULES}
    assert rooms == ARROWS.keys() | GROUND | {"stae_cli", "__main__"}


def test_the_plan_has_no_circle():
    assert circles(ARROWS) == []


@pytest.mark.parametrize("room", [*sorted(ARROWS), *sorted(GROUND)])
def test_a_room_imports_only_what_is_below_it(room):
    allowed = ARROWS.get(room, set()) | (GROUND if room in ARROWS else {"errors"}) | {room}
    for name, imported in sorted(INSIDE):
        if room_of(name) == room:
            assert room_of(imported) in allowed, f"{name} imports {imported}"


def test_no_arrow_of_the_plan_is_unused():
    drawn = {(room_of(name), room_of(imported)) for name, imported in INSIDE}
    assert {(a, b) for a, below in ARROWS.items() for b in below} <= drawn


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: set() for name in MODULES}
    for name, imported in INSIDE:
        graph[name].add(imported)
    assert circles(graph) == []


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a -> b -> c -> a"]


def circles(graph):
    """One circle for each module that a walk comes back to, as text."""
    found, done = [], set()

    def walk(name, path):
        if name in path:
            found.append(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for following in sorted(graph.get(name, ())):
                walk(following, [*path, name])
            done.add(name)

    for name in sorted(graph):
        walk(name, [])
    return found


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_owns(name):
    assert ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8")))


def test_files_are_read_and_written_without_torch():
    for name, path in MODULES.items():
        if room_of(name) in WITHOUT_TORCH and name not in WITH_TORCH:
            assert "torch" not in imported_modules(path), name


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
