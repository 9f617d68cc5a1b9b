"""Is the compiled backend installed, what was it built for, and is every operation's result correct?"""

import importlib
import platform
import time

import torch

from refimpl.diffusion.philox import Purpose, draw_key
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.ops import BUILD_COMMAND, KernelNotBuilt, Ops, load_ops

LARGEST_ERROR = 1e-5  # of float32 results of order one, against the reference in float64


def describe() -> list[str]:
    """One line each for Python and torch, each CUDA device, and what the compiled backend was built for."""
    lines = [f"python {platform.python_version()} on {platform.machine()}, torch {torch.__version__}"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            lines.append(f"cuda:{index} {torch.cuda.get_device_name(index)}, sm_{major}{minor}")
    else:
        lines.append(f"no CUDA device (torch is built for {torch.version.cuda or 'the CPU only'})")
    try:
        load_ops("kernel")
    except KernelNotBuilt as error:
        return [*lines, f"backend reference: runs; {error}"]
    kernels = importlib.import_module("refimpl.ops._kernels")
    cuda = f"CUDA {kernels.cuda_arches}" if kernels.cuda_arches else "no CUDA"
    lines.append(
        f"backend kernel: built against torch {kernels.torch_version}, CPU ({kernels.isa()} here) and {cuda}"
    )
    if torch.cuda.is_available() and not kernels.cuda_arches:
        lines.append(f"the GPU has no kernels: install the CUDA toolkit, then REFIMPL_CUDA=1 {BUILD_COMMAND}")
    return lines


def check(device: str) -> list[tuple[str, float, float]]:
    """Runs every operation of the kernel backend once on device, against the reference in float64.

    returns  (operation, largest error, milliseconds)        takes well under 2 s in total
    Raises KernelNotBuilt when the compiled backend is missing.
    """
    kernel, reference = load_ops("kernel"), load_ops("reference")
    results = []
    for name in Ops._fields:
        arguments = _arguments(name, device)
        started = time.perf_counter()
        ours = getattr(kernel, name)(*arguments)
        if device == "cuda":
            torch.cuda.synchronize()
        milliseconds = 1e3 * (time.perf_counter() - started)
        exact = getattr(reference, name)(*(_in_float64(a) for a in arguments))
        pairs = zip(ours, exact, strict=True) if isinstance(ours, tuple) else [(ours, exact)]
        error = max(float(((a.cpu() - b) / (1 + b.abs())).abs().max()) for a, b in pairs)
        results.append((name, error, milliseconds))
    return results


def report() -> tuple[list[str], bool]:
    """What `refimpl doctor` prints about the operations, and whether everything is in order.

    A missing compiled backend is not an error: the reference runs, and the report says how to build the kernels.
    """
    lines, well = describe(), True
    try:
        kernels = importlib.import_module("refimpl.ops._kernels")
    except ImportError:
        return lines, well
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() and kernels.cuda_arches else [])
    for device in devices:
        for name, error, milliseconds in check(device):
            right = error <= LARGEST_ERROR
            well = well and right
            verdict = "ok" if right else f"WRONG: off by {error:.1e}, rebuild with `{BUILD_COMMAND}`"
            lines.append(f"  {device:<5} {name:<16} {milliseconds:8.2f} ms  error {error:.0e}  {verdict}")
    return lines, well


def _arguments(name: str, device: str) -> tuple:
    shape = (4, 4, 32, 24)
    generator = torch.Generator().manual_seed(0)
    prediction, x0, eps = (torch.randn(shape, generator=generator).to(device) for _ in range(3))
    alpha, sigma = (
        c.to(device) for c in zero_terminal_snr(sdxl_schedule()).at(torch.tensor([0, 300, 700, 999]))
    )
    key = draw_key(0, torch.arange(4), 0, Purpose.NOISE).to(device)
    weight = torch.ones(4, device=device)
    return {
        "add_noise": (x0, eps, alpha, sigma),
        "v_loss": (prediction, x0, eps, alpha, sigma, weight),
        "add_keyed_noise": (x0, key, alpha, sigma, 0.05),
        "keyed_v_loss": (prediction, x0, key, alpha, sigma, weight, 0.05),
        "channel_moments": (x0,),
        "keyed_normal": (key, shape[1:], 0.05),
        "geglu": (x0,),
        "group_norm_silu": (x0, alpha.float() + 1, sigma.float(), 2, 1e-5),
        "layer_norm": (x0, eps[0, 0, 0], prediction[0, 0, 0], 1e-5),
    }[name]


def _in_float64(argument):
    if isinstance(argument, torch.Tensor):
        return argument.cpu().double() if argument.is_floating_point() else argument.cpu()
    return argument
