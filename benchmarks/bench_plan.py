"""Assigning images to buckets and planning an epoch, at one million images and at the paper's six.

python -m benchmarks.bench_plan [--rounds N]        writes results/plan.json
Exits with 1 when a million images take more than 1 s or 300 MB over their sizes.
"""

import argparse
import tracemalloc
from collections.abc import Callable

import numpy as np

from benchmarks.timing import interleaved, summary, write
from refimpl.data.buckets import PRESETS, assign
from refimpl.data.plan import Plan, plan_epoch
from tests.tolerances import FLOAT64_ROUNDING

ITEMS = (1_000_000, 6_000_000)
BUCKETS = PRESETS["novelai_v3"]
BATCH_SIZE, WORLD_SIZE = 8, 256
MOST_SECONDS, MOST_MEGABYTES = 1.0, 300.0  # at a million images
CHECKED = 20_000  # images compared with the printed argmin


def image_sizes(items: int) -> tuple[np.ndarray, np.ndarray]:
    """Widths and heights, int32 as index files hold them: log-normal areas, aspects mostly from 1:2 to 2:1."""
    generator = np.random.default_rng(0)
    area = np.exp(generator.normal(np.log(1.5e6), 0.6, items))
    aspect = np.exp(generator.normal(-0.2, 0.35, items))
    return np.sqrt(area * aspect).astype(np.int32) + 1, np.sqrt(area / aspect).astype(np.int32) + 1


def assert_right(widths: np.ndarray, heights: np.ndarray, plan: Plan) -> None:
    """Nearest buckets, and every item once, or there is nothing to time."""
    index, error = assign(widths[:CHECKED], heights[:CHECKED], BUCKETS)
    logs = np.log([width / height for width, height in BUCKETS])
    distance = np.abs(np.log(widths[:CHECKED] / heights[:CHECKED])[:, None] - logs)
    assert np.allclose(error, distance.min(1), rtol=0, atol=FLOAT64_ROUNDING)
    assert (distance[np.arange(CHECKED), index] <= distance.min(1) + FLOAT64_ROUNDING).all()
    seen = np.concatenate([plan.global_batch(step)[1] for step in range(len(plan))])
    assert (np.sort(np.concatenate([seen, plan.dropped])) == np.arange(widths.size)).all()


def peak_megabytes(call: Callable[[], object]) -> float:
    """Most memory allocated at once during a call, NumPy's arrays among it; its result is still held."""
    tracemalloc.start()
    result = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    del result
    return peak / 1e6


def measure(items: int, rounds: int) -> dict[str, object]:
    """One row of the result."""
    widths, heights = image_sizes(items)
    index, _ = assign(widths, heights, BUCKETS)

    def assigned_and_planned() -> Plan:
        return plan_epoch(assign(widths, heights, BUCKETS)[0], BATCH_SIZE, 0, 0, WORLD_SIZE)

    assert_right(widths, heights, assigned_and_planned())
    seconds = interleaved(
        {
            "assign": lambda: assign(widths, heights, BUCKETS),
            "plan": lambda: plan_epoch(index, BATCH_SIZE, 0, 0, WORLD_SIZE),
            "plan, paper mode, rank 0": lambda: plan_epoch(
                index, BATCH_SIZE, 0, 0, WORLD_SIZE, "paper"
            ).batch(0),
            "assign and plan": assigned_and_planned,
        },
        rounds,
        warmup=1,
    )
    row: dict[str, object] = {"items": items}
    row |= {name: summary(times) | {"least_ms": 1e3 * min(times)} for name, times in seconds.items()}
    row["assign and plan, peak MB"] = peak_megabytes(assigned_and_planned)
    row["plan, peak MB"] = peak_megabytes(lambda: plan_epoch(index, BATCH_SIZE, 0, 0, WORLD_SIZE))
    for name, times in seconds.items():
        print(f"{items:>9,} items, {name}: {1e3 * np.median(times):.0f} ms (least {1e3 * min(times):.0f})")
    print(
        f"{items:>9,} items, peak {row['assign and plan, peak MB']:.0f} MB, plan alone {row['plan, peak MB']:.0f}"
    )
    return row


def main() -> None:
    """Assert, time, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of each function per size")
    arguments = parser.parse_args()
    rows = [measure(items, arguments.rounds) for items in ITEMS]
    million = rows[0]["assign and plan"]
    assert isinstance(million, dict)
    seconds, megabytes = million["median_ms"] / 1e3, rows[0]["assign and plan, peak MB"]
    assert isinstance(megabytes, float)
    settings = {"buckets": len(BUCKETS), "batch_size": BATCH_SIZE, "world_size": WORLD_SIZE}
    path = write("plan", {"numpy": np.__version__, **settings, "rounds": arguments.rounds, "sizes": rows})
    print(f"a million: {seconds:.3f} s, {megabytes:.0f} MB; wrote {path}")
    if seconds > MOST_SECONDS or megabytes > MOST_MEGABYTES:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
