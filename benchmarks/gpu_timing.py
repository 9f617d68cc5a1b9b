"""Times of GPU operations: medians of replayed graphs, over tensors that rotate through more memory than the L2."""

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch

ROTATED_BYTES = 512 * 2**20  # many times the L2
Input = TypeVar("Input")


def timed(call: Callable[[Input], object], sets: list[Input], device: str, repeats: int) -> dict[str, float]:
    """Median and quartiles of one call in microseconds, going through all sets; on CUDA replayed from a graph.

    The results of one round are kept until its end, so that a round's outputs are as spread as its inputs.
    """

    def run() -> list[object]:
        return [call(x) for x in sets]

    for x in sets[:3]:
        call(x)
    if device == "cpu":
        return _quartiles([_host_microseconds(run) / len(sets) for _ in range(repeats)])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(sets[0])
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        kept = run()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times = []
    for _ in range(repeats + 1):
        start.record()
        captured.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end) / len(sets))
    del kept
    return _quartiles(times[1:])


def _host_microseconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return 1e6 * (time.perf_counter() - started)


def _quartiles(times: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(times, n=4)
    return {"median_us": middle, "quartile_low_us": low, "quartile_high_us": high}
