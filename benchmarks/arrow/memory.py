"""What one form of an index keeps resident, step by step, in a process that has done nothing else.

python -m benchmarks.arrow.memory FORM FILE        prints JSON; `bench_arrow_index` calls it
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from benchmarks.arrow.compared import entry
from benchmarks.arrow.resident import resident
from benchmarks.bench_plan import BATCH_SIZE, BUCKETS, WORLD_SIZE
from refimpl.data.buckets import assign_and_prune
from refimpl.data.index.data_set import Index, index_of, read_index
from refimpl.data.plan import plan_epoch
from refimpl.data.tags import TagCounts, count_tags, dataset_weights

T = TypeVar("T")
MOST_ERROR = 1.5  # of an image's aspect, in the logarithm
ROWS = 10_000  # read at random


def opened(form: str, path: str) -> Index:
    """The index in a file of one of the forms."""
    if form == "ours":
        return read_index(path)
    import pyarrow as pa

    from benchmarks.arrow.file import read_arrow, table_of

    if form == "arrow":
        return index_of(read_arrow(path))
    return index_of(table_of(pa.ipc.open_file(pa.memory_map(path)).get_batch(0)))  # nothing is let go of


def main(form: str, path: str) -> None:
    """What training does with an index before its first step, and then rows at random."""
    before, seconds, kept = resident(), dict[str, float](), dict[str, int]()

    def timed(name: str, call: Callable[[], T]) -> T:
        start = time.process_time()
        result = call()
        seconds[name] = time.process_time() - start
        gc.collect()
        kept[name] = resident() - before
        return result

    if form != "ours":
        timed("import", lambda: __import__("benchmarks.arrow.file"))
    index = timed("open", lambda: opened(form, path))

    def planned() -> tuple[Any, ...]:
        assigned = assign_and_prune(index.widths, index.heights, BUCKETS, "log", MOST_ERROR)
        chosen = np.flatnonzero(~assigned.pruned)
        taken, bucket_of = index.take(chosen), assigned.index[chosen]
        weights = dataset_weights(taken.tags, count_tags(taken.tags, TagCounts())).astype(np.float32)
        plan_epoch(bucket_of, BATCH_SIZE, 0, 0, WORLD_SIZE)
        return taken, bucket_of, weights

    held = timed("plan", planned)
    index = held[0]
    rows = np.random.default_rng(0).integers(0, len(index), ROWS).tolist()
    for row in rows:  # without a list of what was read, so that only pages add up
        entry(index, row)
    timed("random rows", lambda: None)
    print(json.dumps({"processor_seconds": seconds, "resident": kept}))


if __name__ == "__main__":
    main(*sys.argv[1:])
