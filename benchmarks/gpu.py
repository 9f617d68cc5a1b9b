"""Everything that needs a GPU, in stages: build, tests, step and op timing, then what a second call can add.

python -m benchmarks.gpu --out DIR [--stages NAME,NAME] [--seconds 420] [--dry-run]

The stages are processes of their own, each with a time limit, which grows for tests and steps by what earlier
stages leave; a stage that fails or runs out of time stops none after it, and every stage writes its own results as
soon as it has them. DIR then holds gpu.json (how each stage ended), one JSON file per stage that measures, and
logs.tar.gz. Called again with the same DIR, it goes on with the stages that have not passed yet, those that were
not begun first. The exit code is 1 when a stage failed. --dry-run walks through the same stages on the CPU with
small tensors, torch.compile included, to find mistakes in the script before a GPU is spent on it.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.gpu_stages import FIRST, PROGRAM, ROOT, Stage, stages
from benchmarks.timing import write

SECONDS = 420  # for all stages of one call together
LENT = 900  # seconds that a machine is lent for, its start of about START seconds included
START = 90
SHORTEST = 5  # seconds; with less left, a stage is not started
DRY_PATIENCE = 10  # a CPU with few cores builds slowly
LAST_LINES = 3  # of a log that is shown when its stage did not pass


def run(stage: Stage, logs: Path, seconds_left: float, patience: float = 1, later: float = 0) -> dict:
    """Runs one stage within the time left and its limit; its output goes to the logs.

    patience  by which the limit is multiplied    later  limits of the stages after it together
    """
    limit = stage.seconds * patience
    if stage.grows:
        limit = max(limit, seconds_left - later)
    limit = min(limit, seconds_left)
    if limit < SHORTEST:
        return {"result": "not started: the time was up"}
    missing = {command[0] for command in stage.commands if shutil.which(command[0]) is None}
    if missing:
        return {"result": f"not started: {', '.join(missing)} is not installed"}
    started = time.monotonic()
    until = ["--seconds", str(limit - stage.last_case)] if stage.last_case else []
    numbered = [
        logs / (f"{stage.name}-{k}.log" if len(stage.commands) > 1 else f"{stage.name}.log")
        for k in range(len(stage.commands))
    ]
    side_by_side = min(len(stage.commands), max(1, (os.cpu_count() or 1) // 2))
    with concurrent.futures.ThreadPoolExecutor(side_by_side) as pool:
        endings = list(
            pool.map(
                lambda job: _run_one([*job[0], *until], job[1], stage.environment, started + limit),
                zip(stage.commands, numbered, strict=True),
            )
        )
    failed = [ending for ending in endings if ending != "passed"]
    last = [line for log in numbered for line in _last_lines(log, LAST_LINES if failed else 1)]
    seconds = round(time.monotonic() - started, 1)
    return {"result": "; ".join(failed) or "passed", "seconds": seconds, "limit": limit, "last": last}


def _run_one(command: Sequence[str], log: Path, added: Mapping[str, str], deadline: float) -> str:
    """Runs one command in a process group of its own, all of which ends at the deadline."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **added},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return "stopped: its time was up"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    collected_nothing = code == 5 and "pytest" in command  # no test of this file runs on CUDA
    return "passed" if code == 0 or collected_nothing else f"failed with exit code {code} ({log.name})"


def _last_lines(log: Path, count: int) -> list[str]:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return [f"{log.stem}: {line.strip()[:300]}" for line in lines[-count:]]


def _write(out: Path, logs: Path, results: Mapping[str, dict], dry_run: bool) -> None:
    """Writes what is known so far: gpu.json and one archive of all logs."""
    write("gpu", {"dry_run": dry_run, "stages": results}, out / "gpu.json")
    with tarfile.open(out / "logs.tar.gz", "w:gz") as archive:
        archive.add(logs, "logs")


def _results_before(report: Path, dry_run: bool) -> dict[str, dict]:
    """How the stages of earlier calls ended; a walk on the CPU does not count on a GPU, nor the other way round."""
    if not report.exists():
        return {}
    before = json.loads(report.read_text())
    return before["stages"] if before["dry_run"] == dry_run else {}


def _logs_before(archive: Path, is_told: bool) -> Path:
    """A new folder for logs, with those of earlier calls whose results are told."""
    folder = Path(tempfile.mkdtemp(prefix="gpu-logs-"))
    if is_told and archive.exists():
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
    (folder / "logs").mkdir(exist_ok=True)
    return folder / "logs"


def _left(names: Sequence[str], results: Mapping[str, dict]) -> list[str]:
    """The stages that have not passed: those that were never begun first, after the build that they need."""

    def comes_late(name: str) -> bool:
        return name != "build" and not results.get(name, {"result": "not started"})["result"].startswith(
            "not started"
        )

    return sorted((n for n in names if results.get(n, {}).get("result") != "passed"), key=comes_late)


def main() -> None:
    """Runs the stages, and prints one line for each at the end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the logs and results")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all stages together")
    names = f"names, separated by commas, {','.join(FIRST)} for a first call; all that have not passed when left out"
    parser.add_argument("--stages", default="", help=names)
    parser.add_argument(
        "--dry-run", action="store_true", help="the same stages on the CPU, with small tensors"
    )
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    PROGRAM.parent.mkdir(exist_ok=True)
    deadline = time.monotonic() + arguments.seconds
    known = {stage.name: stage for stage in stages(out, arguments.dry_run)}
    results = _results_before(out / "gpu.json", arguments.dry_run)
    chosen = arguments.stages.split(",") if arguments.stages else _left(list(known), results)
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"unknown stages {', '.join(unknown)}; there are {', '.join(known)}")
    if arguments.dry_run:
        left_out = [name for name in chosen if known[name].needs_gpu]
        print(f"left out of a dry run, as they need a GPU: {', '.join(left_out) or 'none'}", flush=True)
        chosen = [name for name in chosen if name not in left_out]
    logs = _logs_before(out / "logs.tar.gz", is_told=bool(results))
    patience = DRY_PATIENCE if arguments.dry_run else 1
    for number, name in enumerate(chosen, 1):
        later = sum(known[after].seconds for after in chosen[number:])
        results[name] = run(known[name], logs, deadline - time.monotonic(), patience, later)
        print(f"{name:<12} {results[name]['result']}", flush=True)
        _write(out, logs, results, arguments.dry_run)
    print(f"\n{'stage':<12} {'seconds':>8}  result")
    for name, result in results.items():
        print(f"{name:<12} {result.get('seconds', 0):>8}  {result['result']}")
        for line in result.get("last", []):
            print(f"{'':<12} {'':>8}  {line}")
    if any(results[name]["result"] != "passed" for name in chosen):
        sys.exit(1)


if __name__ == "__main__":
    main()
