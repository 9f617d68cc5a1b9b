"""Interleaved timing, and the JSON that says on what it was done."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from refimpl.storage.atomic import replace_text

RESULTS = Path(__file__).parent / "results"


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 3,
    before: Callable[[Callable[[], object]], object] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call, one call of each function per round, so that a slow moment hits them alike.

    The order turns from round to round: none of them always runs on the caches another has left.
    before  called with a function just before that function is timed, to bring the caches into a known state
    """
    for _ in range(warmup):
        for function in functions.values():
            function()
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if before is not None:
                before(functions[name])
            start = time.perf_counter()
            functions[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles, in milliseconds."""
    low, middle, high = statistics.quantiles(seconds, n=4)
    return {"median_ms": 1e3 * middle, "quartile_low_ms": 1e3 * low, "quartile_high_ms": 1e3 * high}


def environment() -> dict[str, Any]:
    """Device, versions and commit, for the JSON."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "device": cpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _commit() -> str:
    """What REFIMPL_COMMIT says, where the files are a copy, or the commit of this checkout."""
    if told := os.environ.get("REFIMPL_COMMIT"):
        return told
    git = ["git", "-C", str(RESULTS), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        told = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        told = ""
    return told or "not a git checkout"


def write(name: str, result: Mapping[str, Any], path: Path | None = None) -> Path:
    """Write results/<name>.json, or another path; returns it. A process that is killed leaves the old file whole."""
    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps({"environment": environment(), **result}, indent=2) + "\n")
    return path


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []
