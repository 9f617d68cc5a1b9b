"""Adapter of bghira/SimpleTuner, read from a checkout."""

from collections.abc import Sequence
from math import sqrt
from numbers import Real
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from refimpl.conformance.adapter import Adapter, Size
from refimpl.conformance.adapters.checkouts.checkout import Checkout
from refimpl.conformance.adapters.checkouts.sd_scripts import published_scheduler

COMMIT = "bc8e6ab7738ce457a2ed8eb2d26cadd91c6442cb"
HELPERS = "simpletuner/helpers/"
NOISE, WEIGHT = HELPERS + "training/custom_schedule.py", HELPERS + "training/min_snr_gamma.py"
COLLATE, SIZES = HELPERS + "training/collate.py", HELPERS + "multiaspect/image.py"
LATENT = 8  # pixels of a latent's
SILENT = SimpleNamespace(debug=lambda *_: None)


class SimpleTuner(Adapter):
    """Its zero-SNR rescale, MinSNR, and size conditioning with its default bfloat16; areas of one megapixel."""

    name = "SimpleTuner"

    def __init__(self) -> None:
        self.code = Checkout("bghira/SimpleTuner", COMMIT)
        self.version = self.code.version
        self.rescale: Any = self.code.take(NOISE, "enforce_zero_terminal_snr", torch=torch)
        self.snr: Any = self.code.take(WEIGHT, "compute_snr")
        state = SimpleNamespace(is_sdxl_refiner=lambda: False)
        self.collate: Any = self.code.take(
            COLLATE, "compute_time_ids", torch=torch, logger=SILENT, StateTracker=state
        )
        self.resolutions: dict[Any, Any] = {}
        tracker = SimpleNamespace(
            get_args=lambda: SimpleNamespace(aspect_bucket_alignment=64, aspect_bucket_rounding=2),
            get_resolution_by_aspect=lambda dataloader_resolution, aspect: self.resolutions.get(aspect),
            set_resolution_by_aspect=self._remember,
        )
        self.sizes: Any = self.code.take(
            SIZES,
            "MultiaspectImage",
            StateTracker=tracker,
            np=np,
            sqrt=sqrt,
            Real=Real,
            Image=Image,
            logger=SILENT,
        ).MultiaspectImage

    def link(self, method: str) -> str:
        """The line of the function that the method calls."""
        called = {
            "schedule": (NOISE, "enforce_zero_terminal_snr"),
            "weight": (WEIGHT, "compute_snr"),
            "size_ints": (COLLATE, "compute_time_ids"),
            "assign": (SIZES, "MultiaspectImage", "calculate_new_size_by_pixel_area"),
        }
        return self.code.link(*called[method]) if method in called else ""

    def schedule(self, zero_snr: bool) -> Tensor:
        """The table of the betas that enforce_zero_terminal_snr returns."""
        scheduler = published_scheduler()
        if not zero_snr:
            return scheduler.alphas_cumprod
        return torch.cumprod(1 - self.rescale.enforce_zero_terminal_snr(scheduler.betas), dim=0)

    def weight(self, t: Tensor, gamma: float) -> Tensor:
        """compute_snr of the rescaled table, and what its loss makes of it for v-prediction."""
        snr = self.snr.compute_snr(t, SimpleNamespace(alphas_cumprod=self.schedule(True)))
        return torch.stack([snr, gamma * torch.ones_like(t)], dim=1).min(dim=1)[0] / (snr + 1)

    def assign(self, sizes: Sequence[Size]) -> Sequence[Size | None]:
        """calculate_new_size_by_pixel_area of a new data set, whose first image of an aspect decides its size."""
        self.resolutions.clear()
        return [self._target(size) for size in sizes]

    def size_ints(self, original: Size, crop: tuple[int, int], target: Size) -> Tensor:
        """compute_time_ids, which gets the size of the latent."""
        latent = (4, target[1] / LATENT, target[0] / LATENT)
        return self.collate.compute_time_ids(original, latent, torch.bfloat16, LATENT, list(crop))[0]

    def _target(self, size: Size) -> Size:
        aspect = self.sizes.calculate_image_aspect_ratio(size)
        width, height = self.sizes.calculate_new_size_by_pixel_area(float(aspect), 1.0, size)[0]
        return int(width), int(height)

    def _remember(self, dataloader_resolution: float, aspect: float, resolution: Size) -> None:
        self.resolutions[aspect] = resolution
