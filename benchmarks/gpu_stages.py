"""The stages of `benchmarks.gpu`, in the order of their worth, with the seconds that each may take."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# The launchers without torch, which a sanitizer runs in seconds.
PROGRAM = ROOT / "build" / "standalone_check"
# Seconds for each tool: three took 11 to 12 on an H200, and racecheck more than 30.
SANITIZERS = {"memcheck": 20, "racecheck": 45, "initcheck": 20, "synccheck": 20}
RACE_LAYOUTS = 4  # which racecheck has seen even where its time ends before it has seen them all
FIRST = ("build", "device", "tests", "step", "ops")  # of a first call; a second one has the others
STEP_SECONDS = 190
LAST_CASE = 40  # before the step's end no case is begun, so that the rows are completed and written


class Stage(NamedTuple):
    """What is run for one stage.

    commands     run side by side, each with a log of its own
    seconds      limit of the stage
    environment  variables added to those of this process
    grows        whether the limit grows by what the stages before have left over
    last_case    seconds before the limit at which the commands, as their `--seconds` says, are to begin nothing more;
                 0 for commands that have no such option
    needs_gpu    whether a dry run leaves it out
    """

    name: str
    commands: Sequence[Sequence[str]]
    seconds: int
    environment: Mapping[str, str] = MappingProxyType({})
    grows: bool = False
    last_case: int = 0
    needs_gpu: bool = False


def stages(out: Path, dry_run: bool) -> list[Stage]:
    """All stages in the order of their worth, should the time run out."""
    python = [sys.executable, "-u"]
    small = ["--device", "cpu", "--small"] if dry_run else ["--device", "cuda"]
    required = {} if dry_run else {"REFIMPL_REQUIRE_CUDA": "1"}

    def timing(module: str, result: str, *more: str) -> list[str]:
        return [*python, "-m", f"benchmarks.{module}", *small, "--out", str(out / f"{result}.json"), *more]

    def check(name: str) -> list[str]:
        return [*python, "-m", "benchmarks.gpu_checks", name, *small]

    pytest = [*python, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider"]
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "ops").glob("test_*.py"))
    files.append("tests/benchmarks/test_step_captured.py")
    chosen = ["--collect-only"] if dry_run else ["-k", "cuda and not emulated"]
    groups = [files] if dry_run else [[file] for file in files]
    tests = [[*pytest, *group, "-m", "not slow", *chosen] for group in groups]
    training = [*pytest, "tests/ops/test_training.py", "-k", "cpu and full" if dry_run else "cuda"]
    return [
        Stage(
            "build", [_build_command(dry_run)], 100, {"REFIMPL_CUDA": "0" if dry_run else "1", **_arches()}
        ),
        Stage("device", [["nvidia-smi"]], 10, needs_gpu=True),
        Stage("tests", tests, 60, {**required, "OMP_NUM_THREADS": "2"}, grows=True),
        Stage("step", [timing("gpu_step", "step_gpu")], STEP_SECONDS, grows=True, last_case=LAST_CASE),
        Stage("ops", [timing("gpu_ops", "ops_gpu")], 60),
        Stage("update", [timing("gpu_update", "update_gpu")], 40),
        Stage("attention", [timing("gpu_step", "step_gpu", "--attention")], 50),
        Stage("checks", [check("determinism"), check("graph"), check("nccl")], 30),
        Stage("standalone", [_standalone_command()], 50),
        *(
            Stage(tool, _sanitizer_commands(tool), limit, needs_gpu=True)
            for tool, limit in SANITIZERS.items()
        ),
        Stage("torchrun", [timing("gpu_training", "training_gpu")], 45),
        Stage("large", [check("large")], 25),
        Stage("training", [training], 40, required),
    ]


def _arches() -> dict[str, str]:
    return {"TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0")}


def _build_command(dry_run: bool) -> list[str]:
    """Builds the extension, unless one that has what is needed was carried here."""
    check = f"{sys.executable} -m benchmarks.gpu_checks extension --device {'cpu' if dry_run else 'cuda'}"
    return ["sh", "-c", f"{check} || {sys.executable} setup.py build_ext --inplace"]


def _standalone_command() -> list[str]:
    """Compiles the launchers with their own small program, without torch, unless it is newer than its sources."""
    flags = "-O1 -std=c++20 -fmad=false --expt-relaxed-constexpr -lineinfo -arch=sm_90"
    is_new = f'[ -x {PROGRAM} ] && [ -z "$(find csrc -newer {PROGRAM})" ]'
    return ["sh", "-c", f"{is_new} || nvcc {flags} csrc/*.cu -o {PROGRAM}"]


def _sanitizer_commands(tool: str) -> list[list[str]]:
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", str(PROGRAM)]
    return [command] if tool != "racecheck" else [[*command, str(RACE_LAYOUTS)], command]
