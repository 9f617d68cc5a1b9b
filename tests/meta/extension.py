"""The compiled backend of a copied tree, built source by source, so that a changed one is quickly built again."""

import ast
import os
import subprocess
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from torch.utils import cpp_extension

EXTENSION = f"refimpl/ops/_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
FASTER_TO_BUILD = "-O1"  # instead of setup.py's -O3; the results have the same bits


def cpu_sources(root: Path) -> list[str]:
    """The sources of the CPU backend, from the root on, as setup.py lists them."""
    return [f"csrc/{name}" for name in _setting(root, "CPU_SOURCES")]


def compile_source(root: Path, source: str, folder: Path) -> Path:
    """Compiles a source of the tree at `root`; returns its object file in `folder`.

    Raises subprocess.CalledProcessError where it does not compile.
    """
    wanted = folder / f"{Path(source).stem}.o"
    defines = ["-DTORCH_EXTENSION_NAME=_kernels", "-DTORCH_API_INCLUDE_EXTENSION_H"]
    includes = [f"-I{path}" for path in (*cpp_extension.include_paths(), sysconfig.get_path("include"))]
    flags = [*_setting(root, "CXX_FLAGS"), FASTER_TO_BUILD, "-fPIC", *defines, *includes]
    _run([_compiler(), *flags, "-c", str(root / source), "-o", str(wanted)])
    return wanted


def link(objects: Iterable[Path], extension: Path) -> None:
    """Links object files to the extension module, in one rename."""
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    libraries += [f"-l{name}" for name in ("c10", "torch", "torch_cpu", "torch_python")]
    made = extension.with_suffix(".new")
    _run([_compiler(), "-shared", *map(str, objects), *libraries, "-o", str(made)])
    made.replace(extension)


def _setting(root: Path, name: str) -> list[str]:
    """A list of strings that setup.py assigns, read without running it."""
    for statement in ast.parse((root / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == name:
            return ast.literal_eval(statement.value)
    raise ValueError(f"setup.py assigns no {name}")


def _compiler() -> str:
    return os.environ.get("CXX", "c++")


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
