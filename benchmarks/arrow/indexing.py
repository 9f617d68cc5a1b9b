"""Indexing real files into each form through the code of `refimpl data index`, and writing records alone."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.arrow.compared import assert_equal, compared
from benchmarks.arrow.file import gathered_batch, read_arrow, write_batch, write_columns
from benchmarks.bench_index import assert_right, write_images
from refimpl.commands.data import index as index_command
from refimpl.data.index import parallel_read
from refimpl.data.index.builder import Gathered, Row
from refimpl.data.index.data_set import index_of
from refimpl.data.index.index_file import read_table, write_table
from refimpl.data.index.record import IndexOptions

RECORDS = 200_000  # written from Python's lists


def indexing(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """Real files through `refimpl data index` on one core, its files ours or Arrow's; and records alone."""
    images, ours, arrow = folder / "images", folder / "real", folder / "real.arrow"
    write_images(images, count)

    def build(out: Path) -> None:
        out.unlink(missing_ok=True)
        index_command.build((str(images),), out, IndexOptions(), 1, show=False)

    def build_arrow() -> None:
        files = {"read_table": read_arrow, "write_table": write_columns}
        with patch.multiple(index_command, **files), patch.multiple(parallel_read, **files):
            build(arrow)

    build(ours)
    build_arrow()
    assert_right(images, ours)
    assert_equal(index_of(read_table(ours)), index_of(read_arrow(arrow)), np.arange(count))
    print(f"{count:,} real files indexed:")
    row = compared({"ours": lambda: build(ours), "arrow": build_arrow}, rounds)
    for name in ("ours", "arrow"):
        row[name]["images_per_processor_second"] = count / (row[name]["processor"]["median_ms"] / 1e3)
    gathered = Gathered("/images")
    names = tuple(f"tag {number}" for number in range(24))
    for number in range(RECORDS):
        name = f"{number // 1000:04}/{number:07}"
        tags = {"general": names[number % 20 :], "artist": (f"artist {number % 977}",)}
        gathered.add(Row(name, f"{name}.jpg", 99, 832, 1216, "a tag, another one, " * 8, tags, True, None))

    def write_ours() -> None:
        table = gathered.table({})
        write_table(ours, {n: (a.dtype, a.shape, [a]) for n, a in table.arrays.items()}, table.facts)

    def write_arrow() -> None:
        write_batch(arrow, gathered_batch(gathered))

    write_ours()
    write_arrow()
    assert_equal(index_of(read_table(ours)), index_of(read_arrow(arrow)), np.arange(0, RECORDS, 997))
    print(f"{RECORDS:,} records written from lists:")
    records = compared({"ours": write_ours, "arrow": write_arrow}, rounds)
    for name in ("ours", "arrow"):
        records[name]["records_per_processor_second"] = RECORDS / (
            records[name]["processor"]["median_ms"] / 1e3
        )
    return {"images": count, "whole_command": row, "records": RECORDS, "records_written": records}
