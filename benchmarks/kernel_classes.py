"""GPU time of a step by class of kernel, from torch's profiler."""

from collections import defaultdict
from collections.abc import Callable

import torch

# The first class with a word that a kernel's name contains, as cuDNN, cuBLAS, flash attention, torch and Triton do.
CLASSES = (
    ("attention", ("flash", "fmha", "attention", "sdpa", "softmax")),
    ("convolution", ("conv", "implicit", "wgrad", "dgrad", "fprop", "nchwtonhwc", "nhwctonchw")),
    ("matrix product", ("gemm", "cutlass", "nvjet", "cublas", "splitk", "sgemm", "s16816", "s1688")),
    ("refimpl ops", ("refimpl",)),
    ("norms", ("norm", "rowwise", "welford")),
    ("optimizer and averages", ("multi_tensor", "fused_adam", "foreach", "adam")),
    ("compiled", ("triton",)),
    ("copies", ("memcpy", "memset", "copy")),
    ("elementwise and reductions", ("elementwise", "reduce", "cat", "index", "fill", "upsample")),
)


def class_of(kernel: str) -> str:
    """The class of a kernel's name; "other" when no word fits."""
    name = kernel.lower()
    return next((label for label, words in CLASSES if any(word in name for word in words)), "other")


def time_by_class(step: Callable[[], None]) -> dict[str, dict]:
    """Milliseconds and launches by class during one step, and the ten kernels that take longest."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    classes: dict[str, dict] = defaultdict(lambda: {"ms": 0.0, "launches": 0})
    kernels: dict[str, float] = defaultdict(float)
    for event in profile.events() or []:
        if event.device_type.name == "CUDA":
            spent = event.device_time_total / 1e3
            entry = classes[class_of(event.name)]
            entry["ms"] += spent
            entry["launches"] += 1
            kernels[event.name[:120]] += spent
    longest = dict(sorted(kernels.items(), key=lambda item: -item[1])[:16])
    return {**dict(sorted(classes.items(), key=lambda item: -item[1]["ms"])), "longest": longest}
