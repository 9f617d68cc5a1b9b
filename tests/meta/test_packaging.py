"""What is published is whole: the sdist holds what git does, and a wheel built from it trains elsewhere."""

import email
import fnmatch
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Tracked files that serve the repository itself, and that no one who installs or tests the package needs.
OURS = (".ci/*", ".github/*", ".editorconfig", ".gitignore", ".pre-commit-config.yaml")
MADE = ("PKG-INFO", "setup.cfg", "refimpl.egg-info/*")  # what setuptools adds
BUILD = "from setuptools import build_meta; print(build_meta.build_{}('dist'))"


def tracked() -> set[str]:
    """The files of the project: those that git tracks, or all of an unpacked sdist, which has no repository."""
    if not (ROOT / ".git").exists():
        everything = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file())
        passing = (*MADE, "*.pyc", "*.so", "build/*", ".*", "*/.*")
        return {name for name in everything if not any(fnmatch.fnmatch(name, passed) for passed in passing)}
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return {name for name in os.fsdecode(listed).split("\0") if name and (ROOT / name).is_file()}


def published(names: set[str]) -> set[str]:
    """Those of the files that belong into the sdist."""
    return {name for name in names if not any(fnmatch.fnmatch(name, ours) for ours in OURS)}


def run_python(code: str, folder: Path, **environment: str) -> str:
    """What Python prints in a folder, outside the repository and without its path."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, built from a copy of the tracked files, on a machine that builds no CUDA."""
    copy = tmp_path_factory.mktemp("copy")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    return copy / "dist" / run_python(BUILD.format("sdist"), copy, REFIMPL_CUDA="0").split()[-1]


def members(path: Path) -> set[str]:
    """The files in an sdist, without the folder that they are in."""
    with tarfile.open(path) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


def test_the_sdist_holds_what_git_does(sdist: Path) -> None:
    """Nothing is missing and nothing came in: no kernel's source, no header, no document."""
    found = {name for name in members(sdist) if not any(fnmatch.fnmatch(name, made) for made in MADE)}
    wanted = published(tracked())
    assert {"csrc/grid.cuh", "csrc/bind_cuda.cpp", "csrc/noise.cu", "docs/install.md"} <= wanted
    assert (sorted(wanted - found), sorted(found - wanted)) == ([], [])


def test_every_source_that_the_build_names_is_published() -> None:
    """And every header that a source includes, so that a CUDA build works from the sdist too."""
    names = published(tracked())
    sources = [
        name for name in names if name.startswith("csrc/") and name.endswith((".cpp", ".cu", ".h", ".cuh"))
    ]
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    named = [
        part.split('"')[0]
        for part in setup.split('    "')[1:]
        if part.split('"')[0].endswith((".cpp", ".cu"))
    ]
    assert len(named) > 10
    assert {f"csrc/{name}" for name in named} <= set(sources)
    for source in sources:
        for line in (ROOT / source).read_text(encoding="utf-8").splitlines():
            if line.startswith('#include "'):
                assert f"csrc/{line.split(chr(34))[1]}" in names, f"{source}: {line}"


def test_what_is_required_is_what_the_sdist_says(sdist: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with tarfile.open(sdist) as archive:
        (path,) = (name for name in archive.getnames() if name.count("/") == 1 and name.endswith("PKG-INFO"))
        told = email.message_from_bytes(archive.extractfile(path).read())  # type: ignore[union-attr]
    assert set(told["Requires-Python"].split(",")) == set(project["requires-python"].split(","))
    assert [line for line in told.get_all("Requires-Dist", []) if "extra ==" not in line] == project[
        "dependencies"
    ]
    assert set(told.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])


TRAIN = """
from pathlib import Path
from PIL import Image
for number in range(16):
    Path("images").mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), (9 * number, 9, 99)).save(f"images/{number}.png")
    Path(f"images/{number}.txt").write_text("colour:blue")
from refimpl.commands.main import dispatch
dispatch(["train", "tiny", "--train.steps", "3", "--latents.train-steps", "3", "--train.out", "run",
          "--data.folder", "images", "--data.heldout", "", "--latents.folder", "latents",
          "--train.backend", "kernel", "--train.device", "cpu"])
"""
WHERE = "import refimpl, refimpl.ops._kernels as k; print(refimpl.__file__, k.__file__, sep='\\n')"


@pytest.mark.slow
def test_a_wheel_built_from_the_sdist_trains_outside_the_repository(sdist: Path, tmp_path: Path) -> None:
    """Kernels included: compiled in a folder of their own, and nothing of the repository is on the path."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    wheel = unpacked / "dist" / run_python(BUILD.format("wheel"), unpacked, REFIMPL_CUDA="0").split()[-1]
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    shutil.rmtree(unpacked)

    packaged = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    wanted = {name for name in tracked() if name.startswith("refimpl/")}
    assert sorted(wanted - packaged) == []
    assert not [name for name in packaged if name.startswith(("tests/", "csrc/", "benchmarks/"))]

    path = {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    for line in run_python(WHERE, elsewhere, **path).splitlines():
        assert line.startswith(str(installed)), line
    run_python(TRAIN, elsewhere, **path)
    assert ended_at(elsewhere / "run") == 3


def ended_at(run: Path) -> int:
    """Step of a run's newest checkpoint."""
    return max(int(path.name.partition("-")[2]) for path in (run / "checkpoints").glob("step-*"))
