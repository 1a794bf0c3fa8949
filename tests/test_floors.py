"""The house keeps its shape: imports go down only, without circles, and no module or function grows too long."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import mmt_cli

PACKAGE = Path(mmt_cli.__file__).parent
# From top to bottom; rooms on one floor do not import each other.
FLOORS = (
    {"cli"},
    {"training", "inspection", "benchmark"},
    {"captioning"},
    {"checkpoint"},
    {"model"},
    {"inputs"},
    {"decoding"},
    {"device", "operations"},
    {"errors"},
)
LIBRARIES = {
    "torch",
    "typer",
    "click",
    "rich",
    "PIL",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "pillow_heif",
    "matplotlib",
    "wandb",
}
DOORS = {"mmt_cli", "mmt_cli.__main__"}  # they open the house at its top, the package itself only when asked


def _name(path: Path) -> str:
    parts = ("mmt_cli", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def _imports(name: str) -> set[str]:
    """Modules that `name` imports, anywhere in it: ours by their whole name, others by their first part."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{name} imports by dots"
            inner = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {module if module in TREES else node.module for module in inner}
    return {module if module.startswith("mmt_cli") else module.partition(".")[0] for module in found}


def _floor(module: str) -> int:
    [floor] = [index for index, rooms in enumerate(FLOORS) if module.split(".")[1] in rooms]
    return floor


INSIDE = sorted(set(TREES) - DOORS)


@pytest.mark.parametrize("name", INSIDE)
def test_a_module_imports_its_own_room_and_those_below(name: str) -> None:
    for other in _imports(name) & set(INSIDE):
        same_room = name.split(".")[1] == other.split(".")[1]
        assert same_room or _floor(other) > _floor(name), f"{name} imports {other}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    list(graphlib.TopologicalSorter({name: _imports(name) & set(INSIDE) for name in INSIDE}).static_order())


@pytest.mark.parametrize("name", TREES)
def test_only_the_libraries_of_the_project_are_imported(name: str) -> None:
    others = {module for module in _imports(name) if not module.startswith("mmt_cli")}
    assert others <= LIBRARIES | sys.stdlib_module_names


@pytest.mark.parametrize("name", TREES)
def test_modules_and_functions_are_short(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, f"{name}.{node.name}"
    last = TREES[name].body[-1].end_lineno if TREES[name].body else 0
    assert (last or 0) <= 320


def test_every_module_imports_alone() -> None:
    program = """
import importlib, sys
for name in sys.argv[1:]:
    for loaded in [key for key in sys.modules if key.startswith("mmt_cli")]:
        del sys.modules[loaded]
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", program, *TREES], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
