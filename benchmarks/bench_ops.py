"""The compiled operations on this CPU against eager torch, torch.compile, diffusers and the memory's own speed.

python -m benchmarks.bench_ops [--network] [--threads N] [--batches 1 4 …] [--dtypes float32 …] [--out FILE]
writes results/ops_cpu.json, and with --network, for the operations of the network's blocks and the update,
results/network_ops_cpu.json. Agreement with the reference is asserted before anything is timed. The rows are those of
op_rows.py; `pytest benchmarks/test_bench_ops.py --benchmark-enable` times the same under pytest-benchmark.

warm   the same function has just been called WARM_CALLS times: it finds its tensors, its code and its memory
cold   they hold something else: a buffer larger than the last level has been read, as after a pass of the network

The ceiling of a row is its minimal traffic over the bandwidth of torch.add(x, y, out=z) on tensors of the same size,
timed in the same rounds and in the same way.

Everything is timed as processes run by default, where glibc returns large freed blocks to the system and whoever
allocates pays for fresh pages. Large float32 batches are timed once more with the C library told to keep freed
memory, where arithmetic and traffic remain.
"""

import argparse
import ctypes
import importlib.metadata
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import network_rows
from benchmarks.op_rows import KERNEL, Columns, assert_agreement, backward, rows
from benchmarks.shapes import (
    ALWAYS_FLOAT32,
    BATCHES,
    DTYPES,
    LATENT_832_1216,
    LATENT_1024,
    STREAMS,
    inputs,
    minimal_bytes,
)
from benchmarks.timing import interleaved, summary, write
from refimpl.ops import _kernels

CACHE_BYTES = 64 * 2**20  # read to empty the caches: twice the last level of the machines this was run on
WARM_CALLS = 5  # after fewer, last-level cache and heap still change from call to call
LARGEST_CHECKED = 16  # the float64 truth of larger batches adds minutes and no new code path
SMALLEST_KEPT = 64  # timed once more with freed memory kept: smaller batches came out alike
LARGEST_WARM = 64  # the tensors of larger batches leave nothing in the caches
NETWORK = {*network_rows.COLUMNS, "adamw_ema"}
WITH_CEILING = ("add_noise", "v_loss", "step", "channel_moments", "adamw_ema")


def keep_freed_memory() -> bool:
    """glibc's malloc neither maps large blocks one by one nor gives the top of the heap back; False elsewhere."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    return bool(mallopt(trim_threshold, 2**31 - 1)) and bool(mallopt(mmap_max, 0))


def temperatures(batch: int) -> dict[str, Callable]:
    """What to do before a function is timed, for each state of the caches that this batch can find."""
    other = torch.zeros(CACHE_BYTES // 8, dtype=torch.int64)

    def warm(function: Callable[[], object]) -> None:
        for _ in range(WARM_CALLS):
            function()

    def cold(function: Callable[[], object]) -> None:
        other.sum()

    return {"cold": cold} if batch > LARGEST_WARM else {"warm": warm, "cold": cold}


def stream(x: Tensor) -> Callable[[], object]:
    """torch.add over tensors of x's size: two are read, one is written."""
    a, b, out = (torch.ones_like(x) for _ in range(3))
    return lambda: torch.add(a, b, out=out)


def spread(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Median and quartiles of the ratio, round by round."""
    low, middle, high = statistics.quantiles(
        [a / b for a, b in zip(numerator, denominator, strict=True)], n=4
    )
    return {"median": middle, "quartile_low": low, "quartile_high": high}


def rounds_of(batch: int) -> int:
    """Timed calls of each function: fewer where one call takes a tenth of a second."""
    return 25 if batch <= 16 else 11 if batch <= 64 else 5


def time_row(operation: str, columns: Columns, x: Tensor, before: Callable, rounds: int) -> dict:
    """One row of the table: times, ratios to ours, and the share of the ceiling that ours reaches."""
    functions = {**columns, "stream": stream(x)} if operation in WITH_CEILING else columns
    seconds = interleaved(functions, rounds, warmup=2, before=before)
    row: dict = {"times": {name: summary(values) for name, values in seconds.items()}}
    row["kernel is faster by"] = {
        name: spread(seconds[name], seconds["kernel"]) for name in columns if not name.startswith("kernel")
    }
    if operation in WITH_CEILING:
        share = minimal_bytes(operation, x) / (sum(STREAMS["add_noise"]) * x.numel() * x.element_size())
        ceiling = [share * s for s in seconds["stream"]]
        row["share of the ceiling"] = {
            name: spread(ceiling, seconds[name]) for name in columns if name.startswith("kernel")
        }
    return row


def time_rows(batch: int, latent: tuple[int, int, int], dtype: str, memory: str, network: bool) -> list[dict]:
    """The rows of one batch, latent and dtype, agreement asserted first: those on latents, or the network's."""
    x = inputs(batch, latent, DTYPES[dtype])
    if batch <= LARGEST_CHECKED:
        assert_agreement(x)
    torch.compiler.reset()  # each shape is compiled for itself
    what = {"latent": latent, "batch": batch, "dtype": dtype, "freed memory": memory}
    table = []
    for operation, columns in rows(x).items():
        if (operation in ALWAYS_FLOAT32 and dtype != "float32") or (operation in NETWORK) != network:
            continue
        for caches, before in temperatures(batch).items():
            row = time_row(operation, columns, x.x0, before, rounds_of(batch))
            table.append({"operation": operation, "caches": caches, **what, **row})
            print(line_of(table[-1]), flush=True)
    return table


def line_of(row: dict) -> str:
    """One row for the terminal."""
    ratios = ", ".join(f"{k} {v['median']:.1f}" for k, v in row["kernel is faster by"].items())
    kernel = row["times"]["kernel"]["median_ms"]
    shares = [f"{v['median']:.2f} ({k})" for k, v in row.get("share of the ceiling", {}).items()]
    ceiling = f"; of the ceiling {', '.join(shares)}" if shares else ""
    return (
        f"{row['freed memory']:<8} {row['caches']} {row['operation']:<16} {row['dtype']:<9} "
        f"B = {row['batch']:<4} {kernel:8.3f} ms; times {ratios}{ceiling}"
    )


def keyed_normal_seconds(threads: int, rounds: int) -> list[float]:
    """Seconds of keyed_normal at batch 16, in a process that never uses another number of threads."""
    torch.set_num_threads(threads)
    key, seconds = inputs(16, LATENT_1024, torch.float32).key, []
    for _ in range(rounds):
        started = time.perf_counter()
        KERNEL.keyed_normal(key, LATENT_1024)
        seconds.append(time.perf_counter() - started)
    return seconds


def time_threads(rounds: int = 40) -> dict:
    """keyed_normal on one thread and on two, each in processes of its own, turn by turn."""
    seconds: dict[str, list[float]] = {"one": [], "two": []}
    for _, (name, threads) in itertools.product(range(3), (("one", 1), ("two", 2))):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            seconds[name] += pool.submit(keyed_normal_seconds, threads, rounds).result()
    return {
        "times": {name: summary(values) for name, values in seconds.items()},
        "two threads are faster by": spread(seconds["one"], seconds["two"]),
        # of the fastest calls: on a shared machine the median tells when the second core was free
        "two threads are faster by, fastest calls": min(seconds["one"]) / min(seconds["two"]),
    }


def time_autograd(rounds: int = 100) -> dict:
    """What torch's mean and backward pass of four losses take, whoever computes them: no column can be without it."""
    losses = torch.ones(4, requires_grad=True)
    return summary(interleaved({"mean": lambda: backward(losses, losses)}, rounds)["mean"])


def main() -> None:
    """Assert, time, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", action="store_true", help="the network's operations and the update")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--out", type=Path, help="default: in results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = [os.getloadavg()[0]]
    table, network = [], arguments.network
    for name in arguments.dtypes:
        for batch in arguments.batches:
            table += time_rows(batch, LATENT_1024, name, "returned", network)
    table += time_rows(16, LATENT_832_1216, arguments.dtypes[0], "returned", network)
    more = {}
    if not network:
        more["keyed_normal on two threads"] = time_threads()
        more["torch's own mean and backward"] = time_autograd()
    if keep_freed_memory():  # there is no way back, so these come last
        for batch in filter(lambda batch: batch >= SMALLEST_KEPT, arguments.batches):
            table += time_rows(batch, LATENT_1024, arguments.dtypes[0], "kept", network)
    else:
        print("this C library cannot be told to keep freed memory: timed by default only")
    result = {
        "instruction_set": _kernels.isa(),
        "diffusers": importlib.metadata.version("diffusers"),
        "load average before and after": [*load, os.getloadavg()[0]],
        "rows": table,
        **more,
    }
    print(f"wrote {write('network_ops_cpu' if network else 'ops_cpu', result, arguments.out)}")


if __name__ == "__main__":
    main()
