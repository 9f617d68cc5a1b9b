"""What the build and the tests say when something they were told to use is missing."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

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
    assert f"REFIMPL_CUDA=1, but torch {torch.__version__}" in result.stderr
    assert "nvcc is not found: set CUDA_HOME" in result.stderr


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
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    for said, version in (("Cuda compilation tools, release 12.8, V12.8.93", (12, 8)), ("?", (0, 0))):
        nvcc.write_text(f"#!/bin/sh\necho '{said}'\n")
        nvcc.chmod(0o755)
        assert build.toolkit_version(str(tmp_path)) == version


def test_without_a_compiler_the_package_builds_without_kernels(tmp_path):
    result = run("setup.py", "--name", REFIMPL_CUDA="0", CXX="no-such-compiler", PATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "no C++ compiler (no-such-compiler); building without kernels" in result.stderr
    assert result.stdout.split()[-1] == "refimpl"
