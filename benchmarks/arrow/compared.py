"""Our index and the Arrow file: that they say the same, and what each costs in the same rounds."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.timing import interleaved, summary
from refimpl.data.index.data_set import Index


def compared(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Processor and wall time of each call, and its processor time over that of the first, round by round."""
    processor: dict[str, list[float]] = {name: [] for name in calls}

    def counted(name: str) -> Callable[[], object]:
        def call() -> None:
            start = time.process_time()
            calls[name]()
            processor[name].append(time.process_time() - start)

        return call

    wall = interleaved({name: counted(name) for name in calls}, rounds, warmup=1)
    first = next(iter(calls))
    row: dict[str, Any] = {}
    for name, times in processor.items():
        times = times[1:]  # without the warm-up
        ratios = [time / base for time, base in zip(times, processor[first][1:], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        ratio = {"median": middle, "quartile_low": low, "quartile_high": high}
        row[name] = {"processor": summary(times), "wall": summary(wall[name]), "ratio": ratio}
        print(f"  {name}: {1e3 * statistics.median(times):.1f} ms, × {middle:.2f} ({low:.2f}–{high:.2f})")
    return row


def assert_equal(ours: Index, theirs: Index, rows: np.ndarray) -> None:
    """Both say the same of these images, or there is nothing to time."""
    assert len(ours) == len(theirs)
    assert (ours.widths == theirs.widths).all()
    assert (ours.heights == theirs.heights).all()
    for row in rows.tolist():
        assert entry(ours, row) == entry(theirs, row)


def entry(index: Index, row: int) -> tuple[object, ...]:
    """What a batch asks of an image."""
    return index.ids[row], index.paths[row], index.captions[row], index.tags[row]
