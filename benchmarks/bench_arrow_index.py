"""The index file beside the same index as an Arrow IPC file, which pandas, polars and DuckDB open.

python -m benchmarks.bench_arrow_index [--images N] [--most N] [--rounds N]        writes results/arrow_index.json

All of one run: sizes, opening, random access as the loader does it, memory, planning, indexing real files, merging
the pieces of a data set, and reading damaged files. Times are the process's own processor time and wall time; ratios
are of processor time, Arrow over ours, medians over interleaved rounds with quartiles. Needs 9 GB of disk.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.arrow.compared import assert_equal, compared, entry
from benchmarks.arrow.damage import outcomes
from benchmarks.arrow.file import (
    entries_by_take,
    entry_by_scalars,
    read_arrow,
    read_tables,
    record_batch,
    write_batch,
)
from benchmarks.arrow.indexing import indexing
from benchmarks.arrow.merge import BATCH_ROWS, WAYS, write_pieces
from benchmarks.bench_index import synthetic_index
from benchmarks.bench_plan import BATCH_SIZE, BUCKETS, WORLD_SIZE
from benchmarks.timing import write
from refimpl.data.buckets import assign
from refimpl.data.index.data_set import index_of
from refimpl.data.index.index_file import Table, read_table
from refimpl.data.plan import plan_epoch

LEAST_RATE, MOST_BYTES, MOST_PLAN_MS = 5_000, 200, 160  # images/s/core; bytes resident per image; to plan 6 M
READ, BATCH = 3_200, 64  # rows read in a round, one by one or so many at once
MERGED, MERGES = 300_000, 3  # images whose pieces are merged, and how often in each way
DAMAGED, TRIALS, SPAN = 100, 200, 4_096  # images of the file that is damaged, how often, bytes at its ends


def at_size(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """Sizes, opening, random access and planning of one synthetic index in each form; memory in other processes."""
    ours, single, several = folder / "ours", folder / "single.arrow", folder / "several.arrow"
    synthetic_index(ours, count)
    batch = record_batch(read_table(ours))
    write_batch(single, batch)
    write_batch(several, batch, BATCH_ROWS)
    del batch
    twin = shutil.copy(ours, folder / "twin")  # tells how much of a difference is the file's place in memory
    for path in (ours, Path(twin), single, several):
        settle(path)
    index, copy, arrow = index_of(read_table(ours)), index_of(read_table(twin)), index_of(read_arrow(single))
    parts = [index_of(table) for table in read_tables(several)]
    scalars, root = pa.ipc.open_file(pa.memory_map(str(single))).get_batch(0), Path("/images")
    rows = np.random.default_rng(0).integers(0, count, READ)
    listed, batches = rows.tolist(), rows.reshape(-1, BATCH)
    assert_equal(index, arrow, rows[:1000])
    for row in listed[:1000]:
        right = entry(index, row)
        assert right == entry(parts[row // BATCH_ROWS], row % BATCH_ROWS)
        assert right == entry_by_scalars(scalars, root, row)
    assert entries_by_take(scalars, root, batches[0]) == [entry(index, row) for row in listed[:BATCH]]

    sizes = {path.name: path.stat().st_size / count for path in (ours, single, several)}
    result: dict[str, Any] = {"images": count, "file_bytes_per_image": sizes, "rows_read": READ}
    print(f"{count:,} images, opened:")
    opening = {
        "ours": lambda: index_of(read_table(ours)),
        "arrow": lambda: index_of(read_arrow(single)),
        "arrow, batches": lambda: [index_of(table) for table in read_tables(several)],
    }
    result["open"] = compared(opening, rounds)
    print(f"{READ:,} random rows, id, path and caption:")
    result["random_access_without_tags"] = compared(
        {
            "ours": lambda: [(index.ids[r], index.paths[r], index.captions[r]) for r in listed],
            "ours, a copy": lambda: [(copy.ids[r], copy.paths[r], copy.captions[r]) for r in listed],
            "arrow": lambda: [(arrow.ids[r], arrow.paths[r], arrow.captions[r]) for r in listed],
        },
        4 * rounds,
    )
    print("with tags:")
    access = {
        "ours": lambda: [entry(index, row) for row in listed],
        "ours, a copy": lambda: [entry(copy, row) for row in listed],
        "arrow": lambda: [entry(arrow, row) for row in listed],
        "arrow, batches": lambda: [entry(parts[r // BATCH_ROWS], r % BATCH_ROWS) for r in listed],
        "arrow, as_py": lambda: [entry_by_scalars(scalars, root, row) for row in listed],
        f"arrow, take of {BATCH}": lambda: [entries_by_take(scalars, root, chosen) for chosen in batches],
    }
    result["random_access"] = compared(access, 4 * rounds)
    forms = {"ours": index, "arrow": arrow}
    bucket_of = {name: assign(form.widths, form.heights, BUCKETS)[0] for name, form in forms.items()}
    assert (bucket_of["ours"] == bucket_of["arrow"]).all()
    print("planned:")
    plans = {
        name: lambda found=found: plan_epoch(found, BATCH_SIZE, 0, 0, WORLD_SIZE)
        for name, found in bucket_of.items()
    }
    result["plan"] = compared(plans, 4 * rounds)
    paths = {"ours": ours, "arrow": single, "arrow, pyarrow's mapping": single}
    print("bytes resident per image:")
    result["memory"] = {name: memory(name, path, count) for name, path in paths.items()}
    return result


def settle(path: Path) -> None:
    """Brings a file into the page cache by reading it from its disk.

    In what pieces it was written decides how many of its pages one fault maps, and so the time of a random access: of
    copies of one file, as much as a third.
    """
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(1 << 24):
            pass


def memory(name: str, path: Path, count: int) -> dict[str, Any]:
    """Bytes per image that stay resident, in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.arrow.memory", name, str(path)]
    found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    found["resident_bytes_per_image"] = {step: value / count for step, value in found.pop("resident").items()}
    print(f"  {name}: " + ", ".join(f"{s} {v:.0f}" for s, v in found["resident_bytes_per_image"].items()))
    return found


def merging(folder: Path) -> dict[str, Any]:
    """Pieces to one index, each way in processes of its own, in turn."""
    index = folder / "whole"
    synthetic_index(index, MERGED)
    write_pieces(index, folder)
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(MERGES):
        for way, found in runs.items():
            words = [sys.executable, "-m", "benchmarks.arrow.merge", way, str(folder)]
            found.append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    print(f"{MERGED:,} images merged:")
    rows: dict[str, Any] = {"images": MERGED}
    for way, found in runs.items():
        rows[way] = {name: statistics.median(run[name] for run in found) for name in found[0]}
        rows[way]["ratios"] = sorted(
            run["processor"] / first["processor"] for run, first in zip(found, runs["ours"], strict=True)
        )
        print(f"  {way}: {rows[way]['processor']:.2f} s, at most {rows[way]['peak_bytes'] / 1e6:.0f} MB")
    right = index_of(read_table(folder / "ours"))
    rows_checked = np.arange(0, MERGED, 997)
    for name in ("only files", "pyarrow"):
        assert_equal(right, index_of(read_arrow(folder / name)), rows_checked)
    parts = [index_of(table) for table in read_tables(folder / "pyarrow, batches")]
    for row in rows_checked.tolist():
        assert entry(right, row) == entry(parts[row // BATCH_ROWS], row % BATCH_ROWS)
    return rows


def damaged(folder: Path) -> dict[str, Any]:
    """What becomes of a byte that has changed."""
    ours, arrow = folder / "small", folder / "small.arrow"
    synthetic_index(ours, DAMAGED)
    write_batch(arrow, record_batch(read_table(ours)))
    rows = range(DAMAGED)

    def all_of(table: Table) -> object:
        index = index_of(table)
        return [entry(index, row) for row in rows], index.widths.tolist(), index.heights.tolist()

    def by_scalars(path: Path, check: bool) -> object:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        if check:
            batch.validate(full=True)
        sizes = [batch.column(name).to_pylist() for name in ("width", "height")]
        return [entry_by_scalars(batch, Path("/images"), row) for row in rows], sizes

    readers = {
        "ours": (ours, lambda path: all_of(read_table(path))),
        "arrow": (arrow, lambda path: all_of(read_arrow(path))),
        "arrow, as_py": (arrow, lambda path: by_scalars(path, False)),
        "arrow, validated, as_py": (arrow, lambda path: by_scalars(path, True)),
    }
    found = {name: outcomes(path, read, SPAN, TRIALS) for name, (path, read) in readers.items()}
    print("\n".join(f"  one byte changed, {name}: {what}" for name, what in found.items()))
    return {"images": DAMAGED, "trials": TRIALS, **found}


def conditions(row: Mapping[str, Any], indexed: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What an index must reach, and both forms' figures; work beside this on the machine slows both of them."""
    command, access, plan = indexed["whole_command"], row["random_access"], row["plan"]
    found: dict[str, dict[str, float]] = {
        "images per processor second, at least": {"goal": LEAST_RATE},
        "bytes resident per image, at most": {"goal": MOST_BYTES},
        "random access over ours, at most": {
            "goal": 1.0,
            "ours, a copy": access["ours, a copy"]["ratio"]["median"],
        },
        "milliseconds to plan, at most": {"goal": MOST_PLAN_MS},
    }
    for name in ("ours", "arrow"):
        resident = row["memory"][name]["resident_bytes_per_image"]
        values = (
            command[name]["images_per_processor_second"],
            max(resident.values()),
            access[name]["ratio"]["median"],
            plan[name]["processor"]["median_ms"],
        )
        for figures, value in zip(found.values(), values, strict=True):
            figures[name] = value
    return found


def main() -> None:
    """Assert, time, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=3_000, help="real files that are indexed")
    parser.add_argument("--most", type=int, default=6_000_000, help="images of the synthetic index")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each function")
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        found = {"indexing": indexing(Path(name), arguments.images, arguments.rounds)}
        found["damaged"] = damaged(Path(name))
    with tempfile.TemporaryDirectory() as name:
        found["merge"] = merging(Path(name))
    with tempfile.TemporaryDirectory() as name:
        row = at_size(Path(name), arguments.most, arguments.rounds)
    reached = conditions(row, found["indexing"])
    print(json.dumps(reached, indent=1))
    load = {"before": before, "after": os.getloadavg()[0]}
    result = {
        "load_average": load,
        "conditions": reached,
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
        "cores": os.cpu_count(),
    }
    path = write("arrow_index", {**result, **row, **found})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
