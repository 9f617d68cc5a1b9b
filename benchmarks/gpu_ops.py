"""The CUDA kernels against the copy bandwidth, eager torch and torch.compile; launches and host time at batch 8.

python -m benchmarks.gpu_ops --out FILE [--device cuda] [--small]

All columns are medians of replayed CUDA graphs, so that none of them counts launch gaps. *Cold* calls go through
more memory than the L2 holds, inputs and outputs alike; *warm* calls stay on the same tensors. What is said of the
memory bandwidth is claimed of tensors of at least 64 MB only: smaller ones can sit in the L2 whatever is done.
Launches and host time are those of an operator called eagerly. Rows *alone* are a loss with its gradient as one
operator, without torch's mean and backward pass. Agreement with the reference is asserted first, and the file is
written after every size, the largest first.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_network_ops import network_rows
from benchmarks.gpu_timing import ROTATED_BYTES, timed
from benchmarks.shapes import BATCHES, DTYPES, LATENT_832_1216, LATENT_1024, Inputs, inputs, minimal_bytes
from benchmarks.timing import write
from refimpl.ops import _kernels, load_ops
from tests.ops import checks

LARGEST_CHECKED = 16  # the float64 truth of larger batches takes the CPU long
COMPILED_BATCHES = (512, 64, 8)  # each compilation takes seconds
REFERENCE, KERNEL = load_ops("reference"), load_ops("kernel")
UNCAPTURED = {("eager", "channel_moments", "cuda")}  # it makes its count on the CPU, which a graph can't hold
LOSS_AND_GRADIENT = torch.ops.refimpl.v_loss_forward.default
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


def alone() -> dict[str, Call]:
    """The losses with their gradient as one operator."""
    return {
        "v_loss": lambda x: LOSS_AND_GRADIENT(
            x.prediction.detach(), x.x0, x.eps, None, x.alpha, x.sigma, x.weight, 0.0, None
        ),
        "keyed_v_loss": lambda x: LOSS_AND_GRADIENT(
            x.prediction.detach(), x.x0, None, x.key, x.alpha, x.sigma, x.weight, 0.0, None
        ),
    }


def compiled() -> dict[str, Call]:
    """The reference under torch.compile, for one shape and dtype; what was compiled for others is dropped."""
    torch.compiler.reset()
    loss = torch.compile(lambda *a: REFERENCE.v_loss(*a), fullgraph=True, dynamic=False)
    noise = torch.compile(lambda *a: REFERENCE.add_noise(*a), fullgraph=True, dynamic=False)
    return {
        "add_noise": lambda x: noise(x.x0, x.eps, x.alpha, x.sigma),
        "v_loss": lambda x: backward(loss(x.prediction, x.x0, x.eps, x.alpha, x.sigma, x.weight), x),
    }


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
    """One copy of a tensor of this size, the bandwidth that the rows are compared with; source and target rotate."""
    pairs = [
        Inputs(*([torch.empty_like(x).copy_(x)] * 8))._replace(eps=torch.empty_like(x)) for _ in range(sets)
    ]
    return timed(lambda i: i.eps.copy_(i.x0), pairs, device, repeats)["median_us"]


def rotated(x: Inputs, device: str) -> list[Inputs]:
    """The inputs and as many copies as more than fill the L2."""
    one = 4 * x.x0.numel() * x.x0.element_size()
    copies = min(64, max(1, ROTATED_BYTES // one)) if device == "cuda" else 1
    return [
        x,
        *(Inputs(*(t.detach().clone().requires_grad_(t.requires_grad) for t in x)) for _ in range(copies)),
    ]


def time_size(
    batch: int, latent: tuple[int, int, int], dtype: torch.dtype, device: str, repeats: int
) -> list[dict]:
    """The rows of one batch, latent and dtype."""
    x = inputs(batch, latent, dtype, device)
    if batch <= LARGEST_CHECKED:
        checks.check_add_noise(KERNEL, x.x0, x.eps, x.alpha, x.sigma)
        incoming = torch.full_like(x.weight, 1 / batch)
        checks.check_v_loss(KERNEL, x.prediction, x.x0, x.eps, x.alpha, x.sigma, x.weight, incoming)
    sets = rotated(x, device)
    size = x.x0.numel() * x.x0.element_size()
    copy = copy_microseconds(x.x0, len(sets), device, repeats)
    with_compile = batch in COMPILED_BATCHES or device == "cpu"
    columns = {
        "eager": operations(REFERENCE),
        "alone": alone(),
        "compile": compiled() if with_compile and dtype != torch.float16 else {},
    }
    rows = []
    for name, kernel in operations(KERNEL).items():
        bytes_moved = minimal_bytes(name, x.x0)
        row: dict[str, Any] = {"operation": name, "batch": batch, "latent": latent}
        row |= {"dtype": str(dtype).removeprefix("torch."), "tensor_bytes": size, "copy_us": copy}
        row["cold"] = timed(kernel, sets, device, repeats)
        row["warm"] = timed(kernel, [x] * len(sets), device, repeats)
        for column, calls in columns.items():
            if name in calls and (column, name, device) not in UNCAPTURED:
                row[column] = timed(calls[name], sets[:4], device, max(4, repeats // 4))
        floor = copy * bytes_moved / (2 * size)
        best = min(row["cold"]["median_us"], row.get("alone", row["cold"])["median_us"])
        row["share_of_copy_bandwidth"] = floor / row["cold"]["median_us"]
        row["share_of_copy_bandwidth_alone"] = floor / best
        if batch <= 16:
            row |= host_cost(alone().get(name, kernel), x, device)
        rows.append(row)
        if batch in (512, 8):
            print(
                f"{name:<16} {row['dtype']:<9} B = {batch:<4} {row['cold']['median_us']:9.1f} us cold, "
                f"{row['share_of_copy_bandwidth']:.2f} ({row['share_of_copy_bandwidth_alone']:.2f} alone) of copy, "
                + " ".join(
                    f"{column} {row[column]['median_us'] / row['cold']['median_us']:.1f}x"
                    for column in ("eager", "compile")
                    if column in row
                ),
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
    device, repeats = arguments.device, 4 if arguments.small else 20
    result: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "arches": _kernels.cuda_arches,
        "cuda": torch.version.cuda,
        "rows": [],
        "network_rows": [],
    }
    for row in network_rows(device, arguments.small, repeats):
        result["network_rows"].append(row)
        write("ops_gpu", result, arguments.out)
    batches = (3, 2) if arguments.small else tuple(sorted({*BATCHES, 8}, reverse=True))
    latents = ((4, 16, 16),) if arguments.small else (LATENT_1024, LATENT_832_1216)
    for latent in latents:
        for batch in batches if latent is latents[0] else (64, 16):
            for dtype in DTYPES.values():
                result["rows"] += time_size(batch, latent, dtype, device, repeats)
                write("ops_gpu", result, arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
