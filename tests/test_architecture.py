"""Data flows one way: a folder imports only from folders to its left (CONTRIBUTING.md)."""

import ast
from collections import Counter
from pathlib import Path

import pytest

import refimpl

ORDER = [
    {"storage"}, {"data"}, {"latents"}, {"text"}, {"diffusion"}, {"ops"}, {"model"}, {"interop"}, {"sample"},
    {"run"}, {"cache", "autoencoder"}, {"train"}, {"report", "paper", "conformance", "comfyui", "studio"},
    {"commands"},
]  # fmt: skip
RANK = {folder: rank for rank, folders in enumerate(ORDER) for folder in folders}
# Import nothing of the project but each other.
SHARED = {"errors", "names", "packages", "checks", "tables", "progress", "file_kinds", "printable"}
ROOM = 12  # files that a reader still sees at a glance
ROOT = Path(refimpl.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add(f"relative import in {path}")
    return {name for name in found if name.split(".")[0] == "refimpl" or name.startswith("relative")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_flow_from_left_to_right(path: Path) -> None:
    here = path.relative_to(ROOT).with_suffix("").parts[0]
    for name in imports_of(path):
        assert not name.startswith("relative"), f"{path}: absolute imports only"
        there = [*name.split("."), ""][1]
        if there in SHARED or there in ("", "__version__") or there == here or path.name == "__main__.py":
            continue
        assert here not in SHARED, f"{path} imports {name}: shared files import no stage"
        assert RANK[there] < RANK[here], f"{path} imports {name}: that is not to its left"


def test_every_folder_has_its_place() -> None:
    folders = {path.relative_to(ROOT).parts[0] for path in FILES if len(path.relative_to(ROOT).parts) > 1}
    assert folders <= set(RANK)


def test_a_room_holds_at_most_a_dozen_files() -> None:
    rooms = Counter(path.parent for path in FILES if not path.name.startswith("__"))
    assert {room: files for room, files in rooms.items() if files > ROOM} == {}


def test_every_file_begins_with_what_it_is() -> None:
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} has no docstring"
