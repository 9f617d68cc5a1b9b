"""What both sides of the step benchmark share: the case, the cached data, and marks between the parts of a step."""

import math
import time
from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refimpl.model.config import Recompute, UNetConfig

SIZE_FEATURES = 6 * 256  # of the vector conditioning; the rest is the pooled text state


@dataclass(frozen=True)
class Case:
    """One row of the step benchmark.

    who       "ours" or "diffusers"    precision  "bf16" (autocast) or "tf32"
    width, height  of the images       batch      images per micro-batch
    captured   whether our micro-batch is replayed from a CUDA graph (`benchmarks.step_captured`)
    """

    who: str
    precision: str
    width: int
    height: int
    batch: int
    compile: str = "none"
    attention: str = "auto"
    checkpointing: Recompute = "none"
    images_per_step: int = 8
    small: bool = False
    captured: bool = False

    @property
    def accumulate(self) -> int:
        """Micro-batches per optimizer step."""
        return math.ceil(self.images_per_step / self.batch)

    @property
    def name(self) -> str:
        """The row's name, as `--only` reads it."""
        how = " captured" if self.captured else ""
        return f"{self.who} {self.precision} {self.width}x{self.height} {self.compile}{how} B{self.batch}"

    @property
    def is_profiled(self) -> bool:
        """Whether the time is also split by kernel class: for the square images only.

        A captured step runs the kernels of the one that is not, where they are counted.
        """
        return self.width == self.height and self.images_per_step > 1 and not self.captured

    @property
    def unet(self) -> UNetConfig:
        """The network that is trained."""
        return UNetConfig.tiny() if self.small else UNetConfig.sdxl()

    def at(self, batch: int) -> "Case":
        """The same case with another micro-batch."""
        return replace(self, batch=batch)


@dataclass(frozen=True)
class CachedBatch:
    """One micro-batch as it comes from a cache, on the CPU in pinned memory or on the device."""

    latents: Tensor  # [B, 4, h, w] float32, standardised
    context: Tensor  # [B, 77, D]
    pooled: Tensor  # [B, P]


def cached_batches(case: Case, device: str, count: int) -> list[CachedBatch]:
    """Random latents and text states of the right sizes; every batch differs."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    config, size = case.unet, (case.batch, 4, case.height // 8, case.width // 8)
    return [
        CachedBatch(
            normal(*size),
            normal(case.batch, 77, config.context_dim),
            normal(case.batch, config.vector_dim - SIZE_FEATURES),
        )
        for _ in range(count)
    ]


def with_random_weights(network: torch.nn.Module) -> torch.nn.Module:
    """Replaces the layers that start as zeros, whose products a GPU computes faster than others."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1 and not bool(parameter.any()):
                parameter.normal_(std=0.02)
    return network


class Marks:
    """Times between the parts of a step: `mark(name)` ends the part of that name. On CUDA by events, no waits.

    held_bytes  memory that a captured step keeps beside what the allocator gives out
    """

    def __init__(self, device: str):
        self.device, self.held_bytes = device, 0
        self._points: list[tuple[str, torch.cuda.Event | float]] = []

    def start(self) -> None:
        """Begins a step."""
        self._points = [("", self._now())]

    def __call__(self, name: str) -> None:
        """Ends the part `name`, which began at the mark before."""
        self._points.append((name, self._now()))

    def read(self) -> dict[str, float]:
        """Waits for the device, and returns milliseconds by part; parts of one name are added."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        spent: dict[str, float] = defaultdict(float)
        for (_, before), (name, after) in zip(self._points, self._points[1:], strict=False):
            if isinstance(before, float) and isinstance(after, float):
                spent[name] += 1e3 * (after - before)
            elif isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event):
                spent[name] += before.elapsed_time(after)
        return dict(spent)

    def _now(self) -> "torch.cuda.Event | float":
        if self.device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
