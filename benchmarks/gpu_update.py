"""Clip, AdamW and moving average over the tensors of SDXL's UNet: torch's operations against one compiled pass.

python -m benchmarks.gpu_update --out FILE [--device cuda|cpu] [--small] [--parameters N] [--rounds N]

The forms are those of update_rows.py, called as the trainer calls them, launches included, one of each per round.
All 2.57 billion parameters need 51 GB (weights, gradients, two moments, average); --parameters takes as many of the
tensors as have so many elements, which on a CPU is 30 million by default. Agreement with the definition is asserted
first. A form's share of the copy bandwidth: its counted bytes over its time, over those of a copy in the same rounds.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.timing import write
from benchmarks.update_rows import BYTES, assert_agreement, columns, sdxl_shapes, trained
from refimpl.model.unet import UNetConfig
from refimpl.ops import _kernels

CHECKED = 2**21  # parameters whose step is compared with the definition in float64 on the CPU
COPIED = 2**28  # elements of the copy on a GPU: 1 GB is read, 1 GB written
CPU_PARAMETERS = 30_000_000


def milliseconds(function: Callable[[], object], device: str) -> tuple[float, float]:
    """Time of one call on the device, and until the host may go on.

    On a CPU it is the processor time of the one thread, which other work on the machine hardly lengthens.
    """
    if device == "cpu":
        started = time.thread_time()
        function()
        seconds = time.thread_time() - started
        return 1e3 * seconds, 1e3 * seconds
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    started = time.perf_counter()
    function()
    host = time.perf_counter() - started
    end.record()
    end.synchronize()
    return start.elapsed_time(end), 1e3 * host


def quartiles(times: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds."""
    low, middle, high = statistics.quantiles(times, n=4)
    return {"median_ms": middle, "quartile_low_ms": low, "quartile_high_ms": high}


def launches(function: Callable[[], object]) -> int:
    """Kernels that one call launches."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
        torch.cuda.synchronize()
    return sum(event.device_type.name == "CUDA" for event in profile.events() or [])


def measure(shapes: list[torch.Size], device: str, rounds: int, copied: int) -> dict:
    """The table: times, counted bytes and share of the copy bandwidth of each form."""
    state = trained(shapes, device)
    source = torch.ones(copied, device=device)
    target = torch.empty_like(source)
    functions = {**columns(state), "copy": lambda: target.copy_(source)}
    for function in functions.values():
        function()
        function()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    names = list(functions)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(milliseconds(functions[name], device))
    copy = [2 * 4 * copied / (1e6 * device_ms) for device_ms, _ in times.pop("copy")]  # GB/s
    rows = {}
    for name, pairs in times.items():
        on_device, on_host = zip(*pairs, strict=True)
        speed = [BYTES[name] * state.parameters / (1e6 * ms) for ms in on_device]  # GB/s of counted bytes
        ours = [ms for ms, _ in times["kernel alone" if name.endswith("alone") else "kernel"]]
        rows[name] = {
            **quartiles(list(on_device)),
            "host_ms": statistics.median(on_host),
            "counted_bytes_per_parameter": BYTES[name],
            "counted_gb_per_s": statistics.median(speed),
            "share_of_copy_bandwidth": statistics.median(a / b for a, b in zip(speed, copy, strict=True)),
            "kernel_is_faster_by": statistics.median(a / b for a, b in zip(on_device, ours, strict=True)),
        }
        if device == "cuda":
            rows[name]["launches"] = launches(functions[name])
    return {
        "parameters": state.parameters,
        "tensors": len(shapes),
        "copy_gb_per_s": statistics.median(copy),
        "rows": rows,
    }


def main() -> None:
    """Assert, time, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="a tiny UNet's tensors, to try the script")
    parser.add_argument("--parameters", type=float, help="at most so many; default: all on a GPU")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    device = arguments.device
    if device == "cpu":
        torch.set_num_threads(1)
    most = arguments.parameters or (CPU_PARAMETERS if device == "cpu" else math.inf)
    shapes = sdxl_shapes(UNetConfig.tiny() if arguments.small else UNetConfig.sdxl(), most)
    assert_agreement(sdxl_shapes(UNetConfig.tiny(), CHECKED), device)
    rounds = 3 if arguments.small else arguments.rounds
    result = measure(shapes, device, rounds, COPIED if device == "cuda" and not arguments.small else 2**24)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    what = {"gpu": name, "arches": _kernels.cuda_arches, "cuda": torch.version.cuda}
    for form, row in result["rows"].items():
        print(
            f"{form:<13} {row['median_ms']:9.3f} ms  {row['counted_gb_per_s']:7.1f} GB/s of "
            f"{row['counted_bytes_per_parameter']} bytes, {row['share_of_copy_bandwidth']:.2f} of the copy's; "
            f"ours is {row['kernel_is_faster_by']:.2f} times as fast"
        )
    print(f"wrote {write('update', {**what, **result}, arguments.out)}")


if __name__ == "__main__":
    main()
