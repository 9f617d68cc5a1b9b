"""Data flows one way: a folder imports only from folders to its left (CONTRIBUTING.md)."""

import ast
from pathlib import Path

import pytest

import refimpl

ORDER = [
    "data", "latents", "text", "diffusion", "ops", "model", "interop", "sample", "train", "report", "comfyui", "cli",
]  # fmt: skip
SAME_RANK = {"comfyui": "report"}  # neither may import the other; both are left of the command line
COMMANDS = {"cli", "demo", "demo_report", "doctor"}  # right of every folder
SHARED = {"errors", "checks", "tables", "terminal"}  # import nothing of the project but each other
ROOT = Path(refimpl.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def folder_of(module: list[str]) -> str:
    return module[1] if len(module) > 1 else ""


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
    parts = path.relative_to(ROOT).with_suffix("").parts
    here = parts[0]
    for name in imports_of(path):
        assert not name.startswith("relative"), f"{path}: absolute imports only"
        there = folder_of(name.split("."))
        if there in SHARED or there in ("", "__version__") or there == here:
            continue
        assert here not in SHARED, f"{path} imports {name}: shared files import no stage"
        if here in COMMANDS or here == "__init__":
            continue
        assert there not in COMMANDS, f"{path} imports {name}: commands are right of every folder"
        assert ORDER.index(there) < ORDER.index(here), f"{path} imports {name}: that is to its right"
        assert SAME_RANK.get(here) != there, f"{path} imports {name}"


def test_every_folder_has_its_place() -> None:
    folders = {path.relative_to(ROOT).parts[0] for path in FILES if len(path.relative_to(ROOT).parts) > 1}
    assert folders <= set(ORDER)
