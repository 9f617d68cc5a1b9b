"""What is said of a run in the list and on its own page, read from its folder each time it is asked."""

import contextlib
import itertools
import json
import math
import os
import re
from pathlib import Path
from typing import Any

from PIL import Image

from refimpl.studio.run_files import CONFIG, METRICS, Run, is_training, plain_file, read_json
from refimpl.tables import flat
from refimpl.train.metrics.grid_notes import notes_of
from refimpl.train.metrics.own_files import linked, opened_regular
from refimpl.train.metrics.read_rows import LARGEST, JsonLines
from refimpl.train.watch.control_file import CONTROL, asked_actions

LAST_BYTES = 2**16  # of metrics.jsonl, read for the list
SHOWN = 200  # faults and quarantined images
GRID = re.compile(r"step-(\d{8,})\.png")
STEP = re.compile(r"step-(\d{8,})")
FAULTS, QUARANTINE, REPORT = "faults.jsonl", "quarantine.jsonl", "report.html"
GAP = 2  # px between the images of a grid, where the file doesn't say


def summary(run: Run) -> dict[str, Any]:
    """A line of the list of runs. Raises FileNotFoundError when the folder has vanished."""
    os.stat(run.path)
    settings, problem = read_json(run.path / CONFIG)
    rows, updated = _last_rows(run.path / METRICS)
    known: dict[str, Any] = {}
    for row in rows:
        known |= row
    step, steps = known.get("step", 0), _number(settings, "train", "steps")
    trains = is_training(run.path)
    finished = steps is not None and step >= steps
    state = "training" if trains else "unknown" if steps is None else "finished" if finished else "stopped"
    return {
        "id": run.id,
        "name": run.name,
        "state": state,
        "step": step,
        "steps": steps,
        **{name: known.get(name) for name in ("loss", "heldout_loss", "images_per_second", "mfu")},
        "seconds_left": _seconds_left(settings, known, step, steps) if trains else None,
        "updated": updated,
        "faults": _lines(run.path / FAULTS),
        "quarantined": _lines(run.path / QUARANTINE),
        "samples": sum(1 for _ in _grids(run.path)),
        "has_report": plain_file(run.path, REPORT) is not None,
        "problem": linked(run.path) or problem,
    }


def details(run: Run) -> dict[str, Any]:
    """All that a run's own page shows besides its curves. Raises FileNotFoundError when the folder has vanished."""
    settings, _ = read_json(run.path / CONFIG)
    has_report = plain_file(run.path, REPORT) is not None
    return {
        **summary(run),
        "settings": flat(settings),
        "sample_grids": sample_grids(run, settings),
        "checkpoints": _checkpoints(run.path),
        "fault_rows": [_fault(row) for row in _newest(run.path / FAULTS)],
        "quarantine": [
            {name: str(row.get(name, "")) for name in ("path", "kind", "reason")}
            for row in _newest(run.path / QUARANTINE)
        ],
        "asked": asked_actions(run.path / CONTROL),
        "report_url": f"/runs/{run.id}/{REPORT}" if has_report else None,
    }


def differences(tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings that are not the same in all of some runs, sorted by name, each with its values."""
    each = [flat(table) for table in tables]
    names = sorted({name for settings in each for name in settings})
    found = [(name, [settings.get(name) for settings in each]) for name in names]
    return [
        {"key": name, "values": values} for name, values in found if any(v != values[0] for v in values[1:])
    ]


def sample_grids(run: Run, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The grids of samples that a run has drawn, by step, each with its prompts: its own, else the settings'."""
    sample = settings.get("sample", {})
    sample = sample if isinstance(sample, dict) else {}
    found = []
    for step, path in sorted(_grids(run.path)):
        size, notes = _picture(path)
        if size is None:
            continue
        prompts = notes.get("prompts", sample.get("prompts"))
        found.append(
            {
                "name": path.name,
                "step": step,
                "url": f"/runs/{run.id}/samples/{path.name}",
                "prompts": [str(prompt) for prompt in prompts] if isinstance(prompts, list) else [],
                "columns": notes.get("columns", sample.get("seeds", 1)),
                "width": size[0],
                "height": size[1],
                "gap": GAP,
            }
        )
    return found


def _picture(path: Path) -> tuple[tuple[int, int] | None, dict[str, Any]]:
    """Size and notes of a picture, by its header; no size for a file that is none."""
    try:
        with opened_regular(path) as file, Image.open(file, formats=["PNG"]) as image:
            return image.size, notes_of(image)
    except Exception:  # whatever Pillow raises about a damaged or half-written file
        return None, {}


def _grids(run: Path) -> list[tuple[int, Path]]:
    folder = run / "samples"
    with contextlib.suppress(OSError):
        names = (GRID.fullmatch(name) for name in ([] if folder.is_symlink() else os.listdir(folder)))
        return [(int(name[1]), folder / name[0]) for name in names if name]
    return []


def _checkpoints(run: Path) -> list[int]:
    with contextlib.suppress(OSError):
        return sorted(
            int(found[1]) for name in os.listdir(run / "checkpoints") if (found := STEP.fullmatch(name))
        )
    return []


def _last_rows(path: Path) -> tuple[list[dict[str, Any]], float | None]:
    """The rows in the last bytes of a file, and when it was written; none where there is no file."""
    try:
        with opened_regular(path) as file:
            stat = os.fstat(file.fileno())
            file.seek(max(0, stat.st_size - LAST_BYTES))
            lines = file.read(LAST_BYTES).split(b"\n")
    except OSError:
        return [], None
    rows = []
    for line in lines[:-1]:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and type(row.get("step")) is int and row["step"] <= LARGEST:
                rows.append({name: value for name, value in row.items() if _is_known(name, value)})
    return rows, stat.st_mtime


def _is_known(name: str, value: Any) -> bool:
    """Whether an entry of a row is what a run writes: a finite number, or a bucket."""
    if name == "bucket":
        return isinstance(value, list) and [type(side) for side in value] == [int, int] and min(value) > 0
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) <= LARGEST)


def _newest(path: Path) -> list[dict[str, Any]]:
    lines = JsonLines(path)
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(OSError):
        is_more = True
        while is_more:
            found, is_more = lines.read()
            rows = (rows + found)[-SHOWN:]
    return rows[::-1]


def _lines(path: Path) -> int:
    with contextlib.suppress(OSError), opened_regular(path) as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))
    return 0


def _fault(row: dict[str, Any]) -> dict[str, Any]:
    images = row.get("images")
    return {
        "step": row.get("step"),
        "cause": str(row.get("not_finite", "")),
        "images": list(itertools.islice(images, SHOWN)) if isinstance(images, list) else [],
    }


def _seconds_left(
    settings: dict[str, Any], known: dict[str, Any], step: int, steps: int | None
) -> float | None:
    """Of the steps alone, at the speed of the last row; None where a step's images are not known."""
    speed, batches = known.get("images_per_second"), _number(settings, "train", "micro_batches")
    images = _number(settings, "train", "batch_size")
    stages = settings.get("stages")
    for stage in stages if isinstance(stages, list) else []:
        if isinstance(stage, dict) and _number({"": stage}, "", "batch_size"):
            images = stage["batch_size"] if (_number({"": stage}, "", "from_step") or 0) <= step else images
    budget, bucket = _number(settings, "train", "pixel_budget"), known.get("bucket")
    if budget and bucket:
        images = budget // (bucket[0] * bucket[1])
    if not (speed and batches and images and steps):
        return None
    return max(0, steps - step) * batches * images / speed


def _number(settings: dict[str, Any], section: str, name: str) -> int | None:
    table = settings.get(section)
    value = table.get(name) if isinstance(table, dict) else None
    return value if type(value) is int and abs(value) <= LARGEST else None
