"""Plain `pytest` works with and without its plugins, and times nothing unless it is asked to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ONE_ROW = "benchmarks/test_bench_ops.py::test_operation[float32-1-keyed_normal-randn]"


def run_pytest(*arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    # Not as a part of these tests, which may be shared out among processes.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_without_the_plugins_tests_run_and_benchmarks_are_skipped_with_the_reason():
    a_test = "tests/test_architecture.py::test_every_folder_has_its_place"
    output = run_pytest("-p", "no:benchmark", "-p", "no:xdist", a_test, ONE_ROW)
    assert "1 passed, 1 skipped" in output
    assert "pytest-benchmark is not installed" in output


@pytest.mark.parametrize("options", [(), ("--benchmark-enable",)])
def test_benchmarks_are_timed_only_on_request(options: tuple[str, ...]):
    output = run_pytest(ONE_ROW, *options, "--benchmark-max-time=0.001", "--benchmark-min-rounds=1")
    assert "1 passed" in output
    assert ("Rounds" in output) == bool(options)
