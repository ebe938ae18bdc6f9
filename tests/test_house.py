"""The house: who may import whom, and what `import dreamkit` costs."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dreamkit"

RANKS = {
    0: "errors streams schedule images cameras meshes triangles prompts device diffusion disk frozen pages nest",
    1: "kernels",
    2: "render assets losses",
    3: "priors representations metrics",
    4: "guidance toybox",
    5: "settings recipe",
    6: "compose run state step rehearsal loop export propeller adversarial",
    7: "preview doctor evaluate",
    8: "api cli __init__ __main__",
}
"""A file imports only from rooms of lower rank, from its own folder, or beside it at the top from its own rank."""

RANK_OF = {room: rank for rank, rooms in RANKS.items() for room in rooms.split()}
HEAVY = {"diffusers", "transformers", "warp", "trimesh", "xatlas", "imageio", "scipy", "rich", "PIL", "safetensors"}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The second word of a module's name; dreamkit itself lives in the room __init__."""
    return [*module.split("."), "__init__"][1]


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(tree: ast.AST, package: str) -> set[str]:
    """The dreamkit modules that code imports, at any depth of nesting; `package` is what a leading dot means."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                found.add(f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base)
    return {name for name in found if name.split(".")[0] == "dreamkit"}


class Eager(ast.NodeTransformer):
    """Leaves only what runs when a file is imported."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        return None

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


def imports_of(file: Path, eager: bool = False) -> set[str]:
    module = module_of(file)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(file.read_text())
    return imported(Eager().visit(tree) if eager else tree, package)


def forbidden(module: str, target: str) -> bool:
    here, there = room_of(module), room_of(target)
    beside = RANK_OF[here] == RANK_OF[there] and not any((PACKAGE / room).is_dir() for room in (here, there))
    return RANK_OF[there] >= RANK_OF[here] and here != there and not beside


def test_every_room_has_a_rank():
    rooms = {room_of(module_of(file)) for file in FILES}
    assert rooms <= RANK_OF.keys(), "give a new room its rank here"


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_file_imports_only_from_below(file: Path):
    module = module_of(file)
    wrong = {name for name in imports_of(file) if forbidden(module, name)}
    assert not wrong, f"{module} (rank {RANK_OF[room_of(module)]}) imports from its own rank or above"


def test_no_file_waits_for_itself():
    graph = {module_of(file): imports_of(file, eager=True) - {module_of(file)} for file in FILES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the cycle in it


def test_the_check_sees_what_it_should():
    code = """
import dreamkit.loop
from dreamkit import losses, cameras as c
from dreamkit.run import Run
from ..guidance import rule
from . import prior
import os.path
if TYPE_CHECKING:
    from dreamkit.cli import main
def late():
    from dreamkit.render.volume import composite
"""
    assert imported(ast.parse(code), "dreamkit.priors") == {
        "dreamkit.loop",
        "dreamkit.losses",
        "dreamkit.cameras",
        "dreamkit.run",
        "dreamkit.guidance.rule",
        "dreamkit.priors.prior",
        "dreamkit.cli",
        "dreamkit.render.volume",
    }
    assert not {"dreamkit.cli", "dreamkit.render.volume"} & imported(Eager().visit(ast.parse(code)), "dreamkit.priors")
    pairs = {
        ("dreamkit.loop", "dreamkit.run"): False,  # beside each other
        ("dreamkit.run", "dreamkit.cli"): True,
        ("dreamkit.priors.prior", "dreamkit.priors.analytic"): False,  # one folder
        ("dreamkit.priors.prior", "dreamkit.representations.hashgrid"): True,  # one rank, two folders
        ("dreamkit.losses", "dreamkit.render.volume"): True,
        ("dreamkit.losses", "dreamkit.kernels.march.reference"): False,
        ("dreamkit.cli", "dreamkit"): False,
        ("dreamkit.run", "dreamkit"): True,
    }
    assert {pair: forbidden(*pair) for pair in pairs} == pairs


def test_importing_dreamkit_loads_nothing_heavy():
    code = "import sys, dreamkit; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "dreamkit" in loaded
    assert not HEAVY & set(loaded)
