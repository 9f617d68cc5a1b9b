"""The CUDA kernels against the copy bandwidth, eager torch and torch.compile; launches and host time at batch 8.

python -m benchmarks.gpu_ops --out FILE [--device cuda] [--small]

Our times are medians of replayed CUDA graphs (no launch gaps), on tensors that rotate over more memory than the L2
holds (cold) or stay the same (warm); eager torch and torch.compile run as they are called, launches included.
Launches and host time are those of an operator alone: a loss with its gradient, without torch's mean and backward.
Agreement with the reference is asserted first.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.shapes import BATCHES, DTYPES, LATENT_832_1216, LATENT_1024, Inputs, inputs, minimal_bytes
from benchmarks.timing import write
from refimpl.ops import _kernels, load_ops
from tests.ops import checks

LARGEST_CHECKED = 64  # the float64 truth of larger batches takes the CPU minutes
REFERENCE, KERNEL = load_ops("reference"), load_ops("kernel")
ROTATED_BYTES = 512 * 2**20  # many times the L2
Call = Callable[[Inputs], object]


def backward(loss: torch.Tensor, x: Inputs) -> torch.Tensor:
    """The gradient of the batch's mean."""
    return torch.autograd.grad(loss.mean(), x.prediction)[0]


def operations(ops) -> dict[str, Call]:
    """Every operation of a backend as a function of the inputs; losses with their backward pass."""
    return {
        "add_noise": lambda x: ops.add_noise(x.x0, x.eps, x.alpha, x.sigma),
        "add_keyed_noise": lambda x: ops.add_keyed_noise(x.x0, x.key, x.alpha, x.sigma),
        "keyed_normal": lambda x: ops.keyed_normal(x.key, tuple(x.x0.shape[1:])),
        "v_loss": lambda x: backward(ops.v_loss(x.prediction, x.x0, x.eps, x.alpha, x.sigma, x.weight), x),
        "keyed_v_loss": lambda x: backward(
            ops.keyed_v_loss(x.prediction, x.x0, x.key, x.alpha, x.sigma, x.weight), x
        ),
        "channel_moments": lambda x: ops.channel_moments(x.x0),
    }


def without_autograd(x: Inputs) -> dict[str, Call]:
    """The losses with their gradient as one operator: what is launched without torch's mean and backward pass."""
    prediction, scalars = x.prediction.detach(), (x.alpha, x.sigma, x.weight)
    loss_and_gradient = torch.ops.refimpl.v_loss_forward.default
    return {
        "v_loss": lambda x: loss_and_gradient(prediction, x.x0, x.eps, None, *scalars, 0.0, None),
        "keyed_v_loss": lambda x: loss_and_gradient(prediction, x.x0, None, x.key, *scalars, 0.0, None),
    }


def timed(call: Call, sets: list[Inputs], device: str, repeats: int, graph: bool) -> dict[str, float]:
    """Median and quartiles of one call in microseconds, going through all sets; on CUDA by events."""

    def run() -> None:
        for x in sets:
            call(x)

    for x in sets[:3]:
        call(x)
    if device == "cpu":
        return _quartiles([_host_microseconds(run) / len(sets) for _ in range(repeats)])
    if graph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call(sets[0])
        torch.cuda.current_stream().wait_stream(stream)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            run()
        run = captured.replay
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times = []
    for _ in range(repeats):
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end) / len(sets))
    return _quartiles(times)


def _host_microseconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return 1e6 * (time.perf_counter() - started)


def _quartiles(times: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(times, n=4)
    return {"median_us": middle, "quartile_low_us": low, "quartile_high_us": high}


def host_cost(call: Call, x: Inputs, device: str) -> dict[str, float]:
    """Microseconds on the host and kernels launched by one eager call."""
    for _ in range(20):
        call(x)
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(200):
        call(x)
    cost = {"host_us": 1e6 * (time.perf_counter() - started) / 200}
    if device == "cuda":
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            call(x)
            torch.cuda.synchronize()
        events = profile.events() or []
        cost["launches"] = sum(event.device_type.name == "CUDA" for event in events)
    return cost


def copy_microseconds(x: torch.Tensor, sets: int, device: str, repeats: int) -> float:
    """A device-to-device copy of a tensor of x's size."""
    pairs = [(torch.randn_like(x), torch.empty_like(x)) for _ in range(sets)]
    index = [Inputs(*([pair[0]] * 8))._replace(eps=pair[1]) for pair in pairs]
    return timed(lambda i: i.eps.copy_(i.x0), index, device, repeats, graph=True)["median_us"]


def time_size(batch, latent, dtype, device, repeats, compiled: dict[str, Call]) -> list[dict]:
    """The rows of one batch, latent and dtype."""
    x = inputs(batch, latent, dtype, device)
    if batch <= LARGEST_CHECKED:
        checks.check_add_noise(KERNEL, x.x0, x.eps, x.alpha, x.sigma)
        incoming = torch.full_like(x.weight, 1 / batch)
        checks.check_v_loss(KERNEL, x.prediction, x.x0, x.eps, x.alpha, x.sigma, x.weight, incoming)
    one = 4 * x.x0.numel() * x.x0.element_size()
    sets = [x] + [
        Inputs(*(t.detach().clone().requires_grad_(t.requires_grad) for t in x))
        for _ in range(min(64, max(1, ROTATED_BYTES // one)) if device == "cuda" else 1)
    ]
    copy_cold = copy_microseconds(x.x0, len(sets), device, repeats)
    rows = []
    for name, kernel in operations(KERNEL).items():
        cold = timed(kernel, sets, device, repeats, graph=True)
        warm = timed(kernel, [x] * len(sets), device, repeats, graph=True)
        floor = copy_cold * minimal_bytes(name, x.x0) / (2 * x.x0.numel() * x.x0.element_size())
        row = {
            "operation": name,
            "batch": batch,
            "latent": latent,
            "dtype": str(dtype).removeprefix("torch."),
        }
        row |= {"tensor_bytes": x.x0.numel() * x.x0.element_size(), "cold": cold, "warm": warm}
        row |= {"copy_us": copy_cold, "share_of_copy_bandwidth": floor / cold["median_us"]}
        row["eager"] = timed(operations(REFERENCE)[name], sets[:4], device, max(3, repeats // 4), graph=False)
        if name in compiled:
            row["compile"] = timed(compiled[name], sets[:4], device, max(3, repeats // 4), graph=False)
        if batch <= 16:
            row |= host_cost(without_autograd(x).get(name, kernel), x, device)
        rows.append(row)
        print(
            f"{name:<16} {row['dtype']:<9} B = {batch:<4} {cold['median_us']:9.1f} us cold, "
            f"{row['share_of_copy_bandwidth']:.2f} of the copy's bandwidth, "
            f"eager {row['eager']['median_us'] / cold['median_us']:.1f}x "
            f"compile {row.get('compile', cold)['median_us'] / cold['median_us']:.1f}x",
            flush=True,
        )
    return rows


def main() -> None:
    """Assert, time, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="few and small tensors, to try the script")
    arguments = parser.parse_args()
    device, repeats = arguments.device, 3 if arguments.small else 30
    compiled: dict[str, Call] = {}
    if not arguments.small:
        loss = torch.compile(lambda *a: REFERENCE.v_loss(*a), fullgraph=True, dynamic=True)
        noise = torch.compile(lambda *a: REFERENCE.add_noise(*a), fullgraph=True, dynamic=True)
        compiled["add_noise"] = lambda x: noise(x.x0, x.eps, x.alpha, x.sigma)
        compiled["v_loss"] = lambda x: backward(
            loss(x.prediction, x.x0, x.eps, x.alpha, x.sigma, x.weight), x
        )
    batches = (2, 3) if arguments.small else (*BATCHES, 8)
    latents = ((4, 16, 16),) if arguments.small else (LATENT_1024, LATENT_832_1216)
    table = []
    for latent in latents:
        for dtype in DTYPES.values():
            for batch in batches if latent is latents[0] else batches[2:4]:
                table += time_size(batch, latent, dtype, device, repeats, compiled)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    result = {"gpu": name, "arches": _kernels.cuda_arches, "cuda": torch.version.cuda, "rows": table}
    print(f"wrote {write('ops_gpu', result, arguments.out)}")


if __name__ == "__main__":
    main()
