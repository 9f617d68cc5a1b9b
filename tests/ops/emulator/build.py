"""Kernels and launchers compiled for the emulated GPU, each source once for all processes of a test run."""

import hashlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
FLAGS = (
    "-O1",
    "-std=c++20",
    "-fPIC",
    "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",
)  # which forbids leaps between stacks
OBJECTS = "REFIMPL_EMULATOR_OBJECTS"  # a folder to keep object files in, where the caller has one


def shared_objects(factory: pytest.TempPathFactory) -> Path:
    """The folder of object files that all processes of this test run share."""
    if OBJECTS in os.environ:
        folder = Path(os.environ[OBJECTS])
    else:
        own = factory.getbasetemp()
        folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "emulator-objects"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def link(sources: Iterable[Path], out: Path, objects: Path, *how: str) -> Path:
    """Compiles the sources that have no object file yet, and links all to `out`.

    objects  folder of the object files, each named after all that it is made from
    how      further arguments of the linker, such as -shared
    Skips the test where there is no C++ compiler.
    """
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    files = []
    for source in sources:
        flags = [*FLAGS, f"-I{HERE}", f"-I{source.parent}", f"-I{CSRC}"]
        made = objects / f"{source.stem}-{fingerprint(source)}.o"
        if not made.exists():
            new = made.with_suffix(f".{uuid.uuid4().hex}")
            command = [compiler, *flags, "-x", "c++", "-c", str(source), "-o", str(new)]
            subprocess.run(command, check=True)
            new.replace(made)
        files.append(str(made))
    subprocess.run([compiler, *how, *files, "-o", str(out)], check=True)
    return out


def fingerprint(source: Path) -> str:
    """Changes with the source, with any header that it may include, and with the flags."""
    digest = hashlib.sha256(repr(FLAGS).encode())
    for folder in (HERE, CSRC, source.parent):
        for path in sorted([*folder.glob("*.h"), *folder.glob("*.cuh")]):
            digest.update(path.read_bytes())
    digest.update(source.read_bytes())
    return digest.hexdigest()[:32]
