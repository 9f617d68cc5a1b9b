"""Installation: the one folder, copied or linked, is loaded the way ComfyUI loads custom_nodes."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import refimpl.comfyui
from refimpl.comfyui import nodes

FOLDER = Path(refimpl.comfyui.__file__).parent


def load(folder: Path) -> ModuleType:
    """Imports as ComfyUI does: the folder's __init__.py, with the folder's path as the module name."""
    spec = importlib.util.spec_from_file_location(str(folder), folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("how", ["copied", "linked"])
def test_the_folder_alone_brings_the_nodes(how: str, tmp_path: Path) -> None:
    there = tmp_path / "custom_nodes" / "refimpl"
    there.parent.mkdir()
    if how == "copied":
        shutil.copytree(FOLDER, there, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        there.symlink_to(FOLDER, target_is_directory=True)
    module = load(there)
    assert module.NODE_CLASS_MAPPINGS is nodes.NODE_CLASS_MAPPINGS  # the installed ones: no second formula
    assert module.NODE_DISPLAY_NAME_MAPPINGS is nodes.NODE_DISPLAY_NAME_MAPPINGS


def test_without_the_package_it_says_what_to_install(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "__init__.py", tmp_path / "__init__.py")
    run = subprocess.run(
        [sys.executable, "-S", "-I", str(tmp_path / "__init__.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: the nodes in {tmp_path}")
    assert f"{sys.executable} -m pip install --no-build-isolation PATH`, where PATH is a clone" in last


def test_another_missing_package_is_named_itself(tmp_path: Path) -> None:
    """With refimpl installed and torch missing, the error names torch."""
    package = tmp_path / "refimpl" / "comfyui"
    package.mkdir(parents=True)
    (tmp_path / "refimpl" / "__init__.py").touch()
    shutil.copy(FOLDER / "__init__.py", package / "__init__.py")
    (package / "nodes.py").write_text("import torch\n", encoding="utf-8")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import refimpl.comfyui"
    run = subprocess.run(
        [sys.executable, "-S", "-I", "-c", code], capture_output=True, text=True, check=False
    )
    assert "No module named 'torch'" in run.stderr.strip().splitlines()[-1]


def test_the_nodes_are_importable_outside_comfyui() -> None:
    """`comfy` is imported when a node runs, never when the nodes are imported."""
    code = "import sys, refimpl.comfyui; assert 'comfy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
