"""What the build and the tests say when something they were told to use is missing."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ops.conftest import missing_cuda

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("refimpl_setup", ROOT / "setup.py")


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_required_gpu_that_is_missing_fails_the_tests():
    test = "tests/ops/test_doctor.py::test_every_operation_is_checked_in_two_seconds[cuda]"
    result = run("-m", "pytest", "-q", "-p", "no:cacheprovider", test, REFIMPL_REQUIRE_CUDA="1")
    reason = missing_cuda()
    if reason is None:
        assert result.returncode == 0, result.stdout
    else:
        assert result.returncode == 1
        assert f"REFIMPL_REQUIRE_CUDA=1, but {reason}" in result.stdout


def test_a_required_cuda_toolchain_that_is_missing_stops_the_build(tmp_path):
    result = run("setup.py", "--name", REFIMPL_CUDA="1", CUDA_HOME=str(tmp_path), CUDA_PATH="")
    assert result.returncode == 1
    assert f"REFIMPL_CUDA=1, but torch {torch.__version__} has " in result.stderr
    assert ("nvcc is not found: set CUDA_HOME" if torch.version.cuda else "has no CUDA") in result.stderr


def toolkit(folder: Path, version: str) -> str:
    """A folder with an nvcc that says this version; the folder's name."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True, exist_ok=True)
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.1'\n")
    nvcc.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize("version", ["12.0", "12.8", "12.9"])
def test_a_toolkit_of_torchs_first_number_builds_cuda_kernels(version: str, tmp_path: Path) -> None:
    build = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(build)
    assert build.missing_cuda("2.9.0+cu128", "12.8", toolkit(tmp_path, version)) is None


def test_why_there_is_no_cuda_is_said(tmp_path: Path) -> None:
    """torch itself would stop the build at another first number: here nvcc 13 beside torch 2.9 of PyPI."""
    build = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(build)
    newer = toolkit(tmp_path, "13.0")
    assert build.missing_cuda("2.13.0+cpu", None, newer) == "torch 2.13.0+cpu has no CUDA"
    assert build.missing_cuda("2.9.0+cu128", "12.8", None) == (
        "torch 2.9.0+cu128 has CUDA 12.8 and nvcc is not found: set CUDA_HOME"
    )
    assert build.missing_cuda("2.9.0+cu128", "12.8", newer) == (
        f"torch 2.9.0+cu128 has CUDA 12.8 and the toolkit in {tmp_path} is CUDA 13.0, not 12.x"
    )


@pytest.mark.parametrize("wanted", ["", "0", "1"])
def test_a_toolkit_of_another_number_ends_only_a_build_that_asks_for_it(wanted: str, tmp_path: Path) -> None:
    """With a torch that says CUDA 12.8 and no compiler: the kernels of the processor are as if no nvcc were there."""
    (tmp_path / "sitecustomize.py").write_text("import torch\ntorch.version.cuda = '12.8'\n")
    home = toolkit(tmp_path / "cuda", "13.0")
    result = run(
        "setup.py", "--name", REFIMPL_CUDA=wanted, CUDA_HOME=home, PYTHONPATH=str(tmp_path), CXX="g++"
    )
    reason = f"torch {torch.__version__} has CUDA 12.8 and the toolkit in {home} is CUDA 13.0"
    assert result.returncode == (1 if wanted == "1" else 0), result.stderr
    if wanted == "0":
        assert "refimpl:" not in result.stderr  # torch may say that it finds no CUDA
    else:
        said = "REFIMPL_CUDA=1, but" if wanted else "building without CUDA kernels:"
        assert f"refimpl: {said} {reason}" in result.stderr


def test_cuda_kernels_are_built_for_what_the_toolkit_knows():
    """Written out in docs/install.md: the same architectures and toolkits stand there."""
    build = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(build)
    assert build.default_arches((13, 0)) == "8.0;8.6;8.9;9.0;10.0;12.0+PTX"
    assert build.default_arches((12, 6)) == "8.0;8.6;8.9;9.0+PTX"
    assert build.default_arches((11, 4)) == "8.0;8.6+PTX"
    assert build.default_arches((0, 0)) == "8.0;8.6;8.9;9.0;10.0;12.0+PTX"
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| (\d+\.\d) \|.*\| (\d+)\.(\d+) \|$", page, re.M)
    assert {arch: (int(major), int(minor)) for arch, major, minor in told} == build.CUDA_ARCHES


def test_the_toolkit_says_its_version(tmp_path):
    build = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(build)
    assert build.toolkit_version(toolkit(tmp_path, "12.8")) == (12, 8)
    (tmp_path / "bin" / "nvcc").write_text("#!/bin/sh\necho '?'\n")
    assert build.toolkit_version(str(tmp_path)) == (0, 0)


def test_without_a_compiler_the_package_builds_without_kernels(tmp_path):
    result = run("setup.py", "--name", REFIMPL_CUDA="0", CXX="no-such-compiler", PATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "no C++ compiler (no-such-compiler); building without kernels" in result.stderr
    assert result.stdout.split()[-1] == "refimpl"
