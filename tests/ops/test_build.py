"""What the build and the tests say when something they were told to use is missing."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.ops.conftest import missing_cuda

ROOT = Path(__file__).parents[2]


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


def test_without_a_compiler_the_package_builds_without_kernels(tmp_path):
    result = run("setup.py", "--name", REFIMPL_CUDA="0", CXX="no-such-compiler", PATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "no C++ compiler (no-such-compiler); building without kernels" in result.stderr
    assert result.stdout.split()[-1] == "refimpl"
