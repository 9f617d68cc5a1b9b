"""Merging the pieces of a data set into its index: ours, and in three ways to an Arrow file.

python -m benchmarks.arrow.merge WAY FOLDER        prints JSON; `bench_arrow_index` calls it
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.arrow.file import (
    merged_by_arrow,
    read_arrow,
    record_batch,
    table_of,
    write_batch,
    write_columns,
)
from benchmarks.arrow.resident import resident
from refimpl.data.index.builder import fold_key, packed_strings
from refimpl.data.index.columns import Ids, strings
from refimpl.data.index.index_file import Table, read_table, write_table
from refimpl.data.index.layouts.folder import UNIT_IMAGES
from refimpl.data.index.merge import merged

PIECE = UNIT_IMAGES  # as `refimpl data index` makes them
BATCH_ROWS = 1 << 16  # of the file in several record batches
SAMPLED_EVERY = 0.002  # seconds


def write_pieces(index: Path, folder: Path) -> None:
    """Deals an index out to pieces at random, each in both forms and with the tags that occur in it alone."""
    table = read_table(index)
    fold = np.array([fold_key(identifier) for identifier in Ids(table)], np.int64)
    batch = record_batch(Table({**table.arrays, "fold": fold}, table.facts))
    order = np.random.default_rng(0).permutation(len(table))
    for number, start in enumerate(range(0, len(order), PIECE)):
        piece = table_of(batch.take(pa.array(np.sort(order[start : start + PIECE]))))
        met, ids = np.unique(piece.arrays["tag.ids"], return_inverse=True)
        names = strings(piece, "tag_name")
        arrays = {
            **piece.arrays,
            "tag.ids": ids.astype(np.int32),
            "tag_class": piece.arrays["tag_class"][met],
            **packed_strings("tag_name", [names[tag] for tag in met.tolist()]),
        }
        write_batch(folder / f"{number:05}.arrow", record_batch(Table(arrays, piece.facts)))
        columns = {name: (array.dtype, array.shape, [array]) for name, array in arrays.items()}
        write_table(folder / f"{number:05}.piece", columns, piece.facts)


def ours(folder: Path) -> None:
    """What `refimpl data index` does once every piece is read."""
    found = merged([read_table(path, mapped=False) for path in sorted(folder.glob("*.piece"))])
    write_table(folder / "ours", found.columns, found.facts)


def only_files(folder: Path) -> None:
    """The same with Arrow files in place of ours."""
    found = merged([read_arrow(path) for path in sorted(folder.glob("*.arrow"))])
    write_columns(folder / "only files", found.columns, found.facts)


def by_pyarrow(folder: Path) -> None:
    """pyarrow sorts and takes, into one record batch."""
    merged_by_arrow(sorted(folder.glob("*.arrow")), folder / "pyarrow")


def in_batches(folder: Path) -> None:
    """pyarrow sorts and takes, into record batches, each written before the next is made."""
    merged_by_arrow(sorted(folder.glob("*.arrow")), folder / "pyarrow, batches", BATCH_ROWS)


WAYS: dict[str, Callable[[Path], None]] = {
    "ours": ours,
    "only files": only_files,
    "pyarrow": by_pyarrow,
    "pyarrow, batches": in_batches,
}


def main(way: str, folder: str) -> None:
    """Prints processor and wall time, and by how much memory that is no file's grew at its peak."""
    pa.set_cpu_count(1)
    before, peak, done = resident("RssAnon"), 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(SAMPLED_EVERY):
            peak = max(peak, resident("RssAnon") - before)

    thread = threading.Thread(target=sample)
    thread.start()
    start, processor = time.perf_counter(), time.process_time()
    WAYS[way](Path(folder))
    seconds = {"processor": time.process_time() - processor, "wall": time.perf_counter() - start}
    done.set()
    thread.join()
    print(json.dumps({**seconds, "peak_bytes": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
