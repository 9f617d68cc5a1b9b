"""The compiled operations on this CPU against eager torch, torch.compile, diffusers and the memory's own speed.

python -m benchmarks.bench_ops [--rounds N] [--threads N] [--batches 1 4 …] [--dtypes float32 …] [--out FILE]
writes results/ops_cpu.json. Agreement with the reference is asserted before anything is timed.

The loss is timed forward and backward, as the training loop uses it. The ceiling of a row is the minimal traffic
over the bandwidth of torch.add(x, y, out=z) on tensors of the same size, warm (the same tensors again and again)
and cold (rotating over more memory than the caches hold).

Everything is timed twice: as processes run by default, where glibc returns large freed blocks to the system and
each call pays for fresh pages again, and with the C library told to keep freed memory, where arithmetic and traffic
remain.
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
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from benchmarks.shapes import BATCHES, DTYPES, LATENT_512, Inputs, inputs, minimal_bytes
from benchmarks.timing import interleaved, summary, write
from refimpl.ops import _kernels, load_ops
from tests.ops import checks

REFERENCE, KERNEL = load_ops("reference"), load_ops("kernel")
CACHE_BYTES = 128 * 2**20  # more than the last-level cache of the machines this was run on
OFFSET = 0.05

Columns = dict[str, Callable[[], object]]


def keep_freed_memory() -> bool:
    """glibc's malloc neither maps large blocks one by one nor gives the top of the heap back; False elsewhere."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    return bool(mallopt(trim_threshold, 2**31 - 1)) and bool(mallopt(mmap_max, 0))


def backward(loss: Tensor, prediction: Tensor) -> Tensor:
    """The gradient of the batch's mean."""
    return torch.autograd.grad(loss.mean(), prediction)[0]


def assert_agreement(x: Inputs) -> None:
    """The checks of the test suite on these very tensors."""
    incoming = torch.full_like(x.weight, 1 / len(x.weight))
    checks.check_add_noise(KERNEL, x.x0, x.eps, x.alpha, x.sigma)
    checks.check_v_loss(KERNEL, x.prediction, x.x0, x.eps, x.alpha, x.sigma, x.weight, incoming)
    checks.check_add_keyed_noise(KERNEL, x.x0, x.key, x.alpha, x.sigma, OFFSET)
    checks.check_keyed_v_loss(KERNEL, x.prediction, x.x0, x.key, x.alpha, x.sigma, x.weight, OFFSET, incoming)
    checks.check_channel_moments(KERNEL, x.x0)


def reference_loss(prediction, x0, eps, alpha, sigma, weight) -> Tensor:
    """A function of its own for torch.compile, which shares no cache entry with eager calls."""
    return REFERENCE.v_loss(prediction, x0, eps, alpha, sigma, weight).mean()


COMPILED_ADD_NOISE = torch.compile(REFERENCE.add_noise, fullgraph=True, dynamic=True)
COMPILED_LOSS = torch.compile(reference_loss, fullgraph=True, dynamic=True)


def diffusers_loss(scheduler: DDPMScheduler, x: Inputs) -> Tensor:
    """Target, weighted mean square per sample and backward, as diffusers' training scripts write it."""
    target = scheduler.get_velocity(x.x0, x.eps, x.t)  # pyright: ignore[reportArgumentType]
    loss = torch.nn.functional.mse_loss(x.prediction.float(), target.float(), reduction="none")
    return backward(loss.mean(dim=(1, 2, 3)) * x.weight, x.prediction)


def rows(x: Inputs) -> dict[str, Columns]:
    """The columns of each operation's row."""
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    noising = (x.alpha, x.sigma)
    scalars = (*noising, x.weight)
    shape = tuple(x.x0.shape[1:])
    return {
        "add_noise": {
            "eager": lambda: REFERENCE.add_noise(x.x0, x.eps, *noising),
            "compile": lambda: COMPILED_ADD_NOISE(x.x0, x.eps, *noising),
            "diffusers": lambda: scheduler.add_noise(x.x0, x.eps, x.t),  # pyright: ignore[reportArgumentType]
            "kernel": lambda: KERNEL.add_noise(x.x0, x.eps, *noising),
        },
        "v_loss": {
            "eager": lambda: backward(REFERENCE.v_loss(x.prediction, x.x0, x.eps, *scalars), x.prediction),
            "compile": lambda: backward(COMPILED_LOSS(x.prediction, x.x0, x.eps, *scalars), x.prediction),
            "diffusers": lambda: diffusers_loss(scheduler, x),
            "kernel": lambda: backward(KERNEL.v_loss(x.prediction, x.x0, x.eps, *scalars), x.prediction),
        },
        "keyed_normal": {
            "randn": lambda: torch.randn(x.x0.shape),
            "kernel": lambda: KERNEL.keyed_normal(x.key, shape),
        },
        "keyed step": {  # noise drawn, added, and the loss of it: what a training step asks for
            "eager": lambda: eager_step(x),
            "kernel": lambda: keyed_step(x),
        },
        "channel_moments": {
            "eager": lambda: REFERENCE.channel_moments(x.x0),
            "kernel": lambda: KERNEL.channel_moments(x.x0),
        },
    }


def eager_step(x: Inputs) -> Tensor:
    """randn, add_noise and v_loss, forward and backward, in eager torch."""
    eps = torch.randn_like(x.x0)
    REFERENCE.add_noise(x.x0, eps, x.alpha, x.sigma)
    return backward(REFERENCE.v_loss(x.prediction, x.x0, eps, x.alpha, x.sigma, x.weight), x.prediction)


def keyed_step(x: Inputs) -> Tensor:
    """The same with keyed noise, which is drawn in both operations and never stored."""
    KERNEL.add_keyed_noise(x.x0, x.key, x.alpha, x.sigma)
    loss = KERNEL.keyed_v_loss(x.prediction, x.x0, x.key, x.alpha, x.sigma, x.weight)
    return backward(loss, x.prediction)


def streams(x: Tensor) -> Columns:
    """torch.add over tensors of x's size, on the same ones and on rotating ones."""
    sets = max(2, -(-CACHE_BYTES // (3 * x.numel() * x.element_size())))
    buffers = [tuple(torch.ones_like(x) for _ in range(3)) for _ in range(sets)]
    rotation = itertools.cycle(buffers)

    def add(a: Tensor, b: Tensor, out: Tensor) -> None:
        torch.add(a, b, out=out)

    return {"stream warm": lambda: add(*buffers[0]), "stream cold": lambda: add(*next(rotation))}


def spread(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Median and quartiles of the ratio, round by round."""
    low, middle, high = statistics.quantiles(
        [a / b for a, b in zip(numerator, denominator, strict=True)], n=4
    )
    return {"median": middle, "quartile_low": low, "quartile_high": high}


def time_row(operation: str, columns: Columns, x: Inputs, rounds: int) -> dict:
    """One row of the table: times, ratios to ours, and the share of the ceiling that ours reaches."""
    stream = streams(x.x0.detach())
    seconds = interleaved({**columns, **stream}, rounds)
    row: dict = {"times": {name: summary(values) for name, values in seconds.items()}}
    row["kernel is faster by"] = {
        name: spread(seconds[name], seconds["kernel"]) for name in columns if name != "kernel"
    }
    if operation in ("add_noise", "v_loss", "channel_moments"):
        stream_bytes = 3 * x.x0.numel() * x.x0.element_size()
        share = minimal_bytes(operation, x.x0) / stream_bytes
        for temperature in ("warm", "cold"):
            ceiling = [share * s for s in seconds[f"stream {temperature}"]]
            row[f"share of the {temperature} ceiling"] = spread(ceiling, seconds["kernel"])
    return row


def keyed_normal_seconds(threads: int, rounds: int) -> list[float]:
    """Seconds of keyed_normal at batch 64, in a process that never uses another number of threads."""
    torch.set_num_threads(threads)
    key, seconds = inputs(64, LATENT_512, torch.float32).key, []
    for _ in range(rounds):
        started = time.perf_counter()
        KERNEL.keyed_normal(key, LATENT_512)
        seconds.append(time.perf_counter() - started)
    return seconds


def time_threads(rounds: int) -> dict:
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


def time_rows(batch: int, dtype: str, memory: str, rounds: int) -> list[dict]:
    """The rows of one batch and dtype, agreement asserted first."""
    x = inputs(batch, LATENT_512, DTYPES[dtype])
    if batch <= 16:  # the float64 truth of larger batches adds minutes and no new code path
        assert_agreement(x)
    table = []
    for operation, columns in rows(x).items():
        row = time_row(operation, columns, x, max(8, rounds // 4) if batch > 64 else rounds)
        table.append({"operation": operation, "batch": batch, "dtype": dtype, "freed memory": memory, **row})
        ratios = ", ".join(f"{k} {v['median']:.1f}" for k, v in row["kernel is faster by"].items())
        kernel = row["times"]["kernel"]["median_ms"]
        warm = row.get("share of the warm ceiling", {}).get("median")
        ceiling = "" if warm is None else f"; {warm:.2f} of the warm ceiling"
        print(
            f"memory {memory:<8} {operation:<16} {dtype:<9} B = {batch:<4} {kernel:8.3f} ms; "
            f"times {ratios}{ceiling}",
            flush=True,
        )
    return table


def main() -> None:
    """Assert, time, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=40, help="timed calls per function (fewer at batch 512)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--out", type=Path, help="default: results/ops_cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = [os.getloadavg()[0]]
    table = []
    for memory in ("returned", "kept"):
        if memory == "kept" and not keep_freed_memory():
            print("this C library cannot be told to keep freed memory: timed by default only")
            continue
        for name, batch in itertools.product(arguments.dtypes, arguments.batches):
            table += time_rows(batch, name, memory, arguments.rounds)
    result = {
        "latent": LATENT_512,
        "instruction_set": _kernels.isa(),
        "diffusers": importlib.metadata.version("diffusers"),
        "load average before and after": [*load, os.getloadavg()[0]],
        "rounds": arguments.rounds,
        "rows": table,
        "keyed_normal on two threads": time_threads(arguments.rounds),
    }
    print(f"wrote {write('ops_cpu', result, arguments.out)}")


if __name__ == "__main__":
    main()
