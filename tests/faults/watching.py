"""Waiting for what a run in other processes has come to, and reading what it left."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 90  # s; a run that is not there by then never will be


def until(happened: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """What `happened` returns as soon as that counts as true. Raises TimeoutError when it never does."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found = happened()
        if found:
            return found
        time.sleep(0.01)
    raise TimeoutError(f"it has not happened within {patience} s")


def losses(run: Path) -> dict[int, float | None]:
    """The losses logged so far, by step; half a line counts for nothing."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def printed(output: Path) -> list[str]:
    """What each rank has printed."""
    return [path.read_text(errors="replace") for path in sorted(output.glob("rank*.txt"))]


def is_alive(process: int) -> bool:
    """Whether a process runs, or is stopped; one that has ended and waits for its parent does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(errors="replace")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] not in ("Z", "X")


def children(process: int) -> list[int]:
    """The processes that a process has started and that still run."""
    tasks = Path(f"/proc/{process}/task")
    return [int(pid) for path in tasks.glob("*/children") for pid in path.read_text().split()]
