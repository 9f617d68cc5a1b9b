"""Everything that needs a GPU, in one call of at most eight minutes: build, tests, sanitizers, training, timing.

python -m benchmarks.gpu --out DIR [--seconds 480] [--no-build] [--dry-run]

Each step is a process of its own with a log in DIR; DIR/gpu.json says how each ended, and DIR/ops_gpu.json holds
the timings. A step that fails does not stop the next; the exit code is 1 when one failed. --dry-run walks through
the same steps on the CPU with small tensors, to find mistakes in the script before a GPU is spent on it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from benchmarks.timing import environment

ROOT = Path(__file__).resolve().parents[1]
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")


class Step(NamedTuple):
    """One process: what it is, its command, its share of the time in seconds, and its extra environment."""

    name: str
    command: list[str]
    seconds: int
    environment: Mapping[str, str] = MappingProxyType({})


def steps(out: Path, build: bool, dry_run: bool) -> list[Step]:
    """The steps in the order of their worth, should the time run out."""
    python = [sys.executable, "-u"]
    device = ["--device", "cpu", "--small"] if dry_run else ["--device", "cuda"]
    plan = []
    if build:
        command = [*python, "setup.py", "build_ext", "--inplace"]
        arches = {"TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0")}
        plan.append(Step("build", command, 180, {"REFIMPL_CUDA": "0" if dry_run else "1", **arches}))
    if not dry_run:
        plan.append(Step("nvidia-smi", ["nvidia-smi"], 20))
    pytest = [*python, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider"]
    required = {} if dry_run else {"REFIMPL_REQUIRE_CUDA": "1"}
    chosen = ["--collect-only"] if dry_run else ["-k", "cuda and not emulated"]
    plan.append(Step("tests", [*pytest, "tests/ops", "-m", "not slow", *chosen], 150, required))
    timing = [*python, "-m", "benchmarks.gpu_ops", *device, "--out", str(out / "ops_gpu.json")]
    plan.append(Step("timing", timing, 200))
    training = [*pytest, "tests/ops/test_training.py", "-k", "cpu and full" if dry_run else "cuda"]
    plan.append(Step("training", training, 120, required))
    plan.append(Step("graph", [*python, "-m", "benchmarks.gpu_checks", "graph", *device], 60))
    plan.append(Step("large", [*python, "-m", "benchmarks.gpu_checks", "large", *device], 60))
    exercise = [*python, "-m", "benchmarks.gpu_checks", "exercise", *device]
    for tool in SANITIZERS:
        sanitizer = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1"]
        plan.append(Step(tool, exercise if dry_run else [*sanitizer, *exercise], 90))
    return plan


def run(step: Step, log: Path, seconds_left: float) -> dict:
    """Runs one step within the time left; its output goes to the log."""
    limit = min(step.seconds, seconds_left)
    if limit < 5:
        return {"result": "not started: the time was up"}
    if shutil.which(step.command[0]) is None:
        return {"result": f"not started: {step.command[0]} is not installed"}
    started = time.monotonic()
    with log.open("w") as file:
        try:
            process = subprocess.run(
                step.command,
                cwd=ROOT,
                env={**os.environ, **step.environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=limit,
                check=False,
            )
            result = "passed" if process.returncode == 0 else f"failed with exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            result = f"stopped after {limit:.0f} s"
    return {"result": result, "seconds": round(time.monotonic() - started, 1), "log": log.name}


def main() -> None:
    """Runs the steps, writes gpu.json, prints one line per step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the logs and results")
    parser.add_argument("--seconds", type=float, default=480, help="for all steps together")
    parser.add_argument("--no-build", action="store_true", help="the extension is built already")
    parser.add_argument(
        "--dry-run", action="store_true", help="the same steps on the CPU, with small tensors"
    )
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + arguments.seconds
    results: dict[str, dict] = {}
    for step in steps(out, not arguments.no_build, arguments.dry_run):
        results[step.name] = run(step, out / f"{step.name}.log", deadline - time.monotonic())
        print(f"{step.name:<12} {results[step.name]['result']}", flush=True)
        report = {"environment": environment(), "dry_run": arguments.dry_run, "steps": results}
        (out / "gpu.json").write_text(json.dumps(report, indent=2) + "\n")
    if any(result["result"] != "passed" for result in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
