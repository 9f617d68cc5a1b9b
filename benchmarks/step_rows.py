"""Rows of the step benchmark: what an earlier call has left in the file, and how a row is printed."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.step_inputs import Case


def case_of(row: dict[str, Any]) -> list[Any]:
    """What makes two rows measurements of one case: all its settings but the batch, which is what fitted."""
    return [row.get(field.name, field.default) for field in fields(Case) if field.name != "batch"]


def case_in(row: dict[str, Any]) -> Case:
    """The case of a row, which may be older than some settings."""
    return Case(**{field.name: row[field.name] for field in fields(Case) if field.name in row})


def with_rows_before(result: dict[str, Any], before: list[dict[str, Any]]) -> dict[str, Any]:
    """The result with the rows of an earlier file whose cases it does not hold."""
    new = [case_of(row) for row in result["rows"]]
    return {**result, "rows": [row for row in before if case_of(row) not in new] + result["rows"]}


def is_unplanned(row: dict[str, Any], commit: str) -> bool:
    """Whether this code's memory plan is still to be set beside a row of ours; it plans no graph's memory."""
    is_ours = (row["who"], row["result"], row["commit"]) == ("ours", "timed", commit)
    return is_ours and "planned_bytes" not in row and not row.get("captured", False)


def rows_before(out: Path, device: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of steps in an earlier file of this kind of device, and those of attention."""
    if not out.exists():
        return [], []
    before: dict[str, Any] = json.loads(out.read_text())
    if (before["gpu"] == "cpu") != (device == "cpu"):
        return [], []
    for row in before["rows"]:
        row.setdefault("commit", before["environment"]["commit"])
    return before["rows"], before["attention"]


@dataclass(frozen=True)
class RowLine:
    """The printed line of a row."""

    row: dict[str, Any]

    def __str__(self) -> str:
        row = self.row
        how = "" if row["checkpointing"] == "none" else f" {row['checkpointing']}"
        how += "" if row["attention"] == "auto" else f" {row['attention']}"
        how += " captured" if row.get("captured", False) else ""
        name = f"{row['who']:<9} {row['precision']}{how} {row['width']}x{row['height']} B = {row['batch']}"
        if row["result"] != "timed":
            return f"{name} {row['compile']:<6}  {row['result']}"
        parts = " ".join(f"{part} {ms:.0f}" for part, ms in row["parts_ms"].items())
        return (
            f"{name} x {row['accumulate']} {row['compile']:<6}  {row['images_per_second']:6.2f} images/s, "
            f"{row['step_ms']:.0f} ms ({parts}), peak {row['peak_bytes'] / 2**30:.1f} GiB, "
            f"first step {row['first_step_s']:.0f} s"
        )
