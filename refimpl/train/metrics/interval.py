"""Speed, share of the peak arithmetic, waiting and memory, over the steps since the last row of the log."""

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from refimpl.train.step_plan import PlanStep

KIB = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss's unit


@dataclass
class Interval:
    """Sums over the steps since the last row. Time for measuring, sampling and saving in between is not counted."""

    utilisation: Callable[[tuple[int, int], float], float | None]
    """As refimpl.train.budget.utilisation makes it."""
    seconds: float = 0.0
    waited: float = 0.0
    images: int = 0
    busy: float | None = 0.0
    """Seconds that the steps' arithmetic would take at the cards' peak; None where that is not known."""

    def add(self, step: PlanStep, seconds: float) -> None:
        """Adds a step that took `seconds`."""
        self.seconds += seconds
        self.waited += min(step.waited, seconds)
        self.images += step.images
        busy = self.utilisation(step.bucket, step.images)  # at that many images in one second
        self.busy = None if busy is None or self.busy is None else self.busy + busy

    def take(self) -> dict[str, float | None]:
        """images_per_second of all ranks, mfu and loader_stall; begins anew."""
        found = {
            "images_per_second": self.images / self.seconds,
            "mfu": None if self.busy is None else self.busy / self.seconds,
            "loader_stall": self.waited / self.seconds,
        }
        self.seconds, self.waited, self.images, self.busy = 0.0, 0.0, 0, 0.0
        return found


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held at once: in tensors on its GPU, or, on the CPU, in all."""
    if device.type == "cuda" and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
