"""Adapter of Mikubill/naifu, read from a checkout."""

import functools
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refimpl.conformance.adapter import Adapter, Size
from refimpl.conformance.adapters.checkouts.checkout import Checkout
from refimpl.conformance.adapters.checkouts.coordinate_resize import resize_array
from refimpl.conformance.adapters.checkouts.sd_scripts import published_scheduler

COMMIT = "06932770ce7f3c051a32ac1046ed9be910a10819"
NOISE = "modules/scheduler_utils.py"
DATA = "data/bucket.py"
SCALINGS = "models/sgm/denoiser_scaling.py"


class Naifu(Adapter):
    """What its SDXL training calls with zero_terminal_snr and min_snr, and its AspectRatioDataset."""

    name = "naifu"
    crop_survey = 200

    def __init__(self) -> None:
        self.code = Checkout("Mikubill/naifu", COMMIT)
        self.version = self.code.version
        self.noise: Any = self.code.take(
            NOISE, "cache_snr_values", "apply_zero_terminal_snr", "apply_snr_weight", torch=torch
        )
        opencv = SimpleNamespace(INTER_AREA=0, INTER_LANCZOS4=0, resize=_resize)
        self.data: Any = self.code.take(
            DATA, "RatioDataset", "AspectRatioDataset",
            Dataset=object, functools=functools, math=math, np=np, torch=torch, cv2=opencv, Path=object, Entry=object,
        )  # fmt: skip
        self.scaling: Any = self.code.take(SCALINGS, "VScaling", torch=torch, Tuple=tuple).VScaling()
        self.dataset = self._made(1024 * 1024, 2048, 512, 64)

    def link(self, method: str) -> str:
        """The line of the function that the method calls."""
        called = {
            "schedule": (NOISE, "apply_zero_terminal_snr"),
            "weight": (NOISE, "apply_snr_weight"),
            "scalings": (SCALINGS, "VScaling"),
            "buckets": (DATA, "AspectRatioDataset", "generate_buckets"),
            "assign": (DATA, "AspectRatioDataset", "assign_buckets"),
            "crop": (DATA, "AspectRatioDataset", "crop"),
        }
        return self.code.link(*called[method]) if method in called else ""

    def schedule(self, zero_snr: bool) -> Tensor:
        """The scheduler's table after apply_zero_terminal_snr."""
        scheduler = published_scheduler()
        if zero_snr:
            self.noise.apply_zero_terminal_snr(scheduler)
        return scheduler.alphas_cumprod

    def weight(self, t: Tensor, gamma: float) -> Tensor:
        """apply_snr_weight, after the two preparations in the order of its init_model."""
        scheduler = published_scheduler()
        self.noise.apply_zero_terminal_snr(scheduler)
        self.noise.cache_snr_values(scheduler, "cpu")
        return self.noise.apply_snr_weight(torch.ones(len(t)), t, scheduler, gamma, v_prediction=True)

    def scalings(self, sigma_edm: Tensor) -> Sequence[Tensor]:
        """VScaling."""
        return self.scaling(sigma_edm)[:3]

    def buckets(self, max_area: int, max_side: int, min_side: int, step: int) -> Sequence[Size]:
        """generate_buckets, whose sizes are (height, width)."""
        return [(int(w), int(h)) for h, w in self._made(max_area, max_side, min_side, step).buckets_sizes]

    def assign(self, sizes: Sequence[Size]) -> Sequence[Size | None]:
        """assign_buckets, with the default buckets."""
        made = self.dataset
        made.store = SimpleNamespace(raw_res=[(height, width) for width, height in sizes])
        made.assign_buckets()
        found: list[Size | None] = [None] * len(sizes)
        for (height, width), ids in zip(made.buckets_sizes, made.bucket_content, strict=True):
            for i in ids:
                found[i] = (int(width), int(height))
        return found

    def crop(self, image: Tensor, bucket: Size) -> tuple[Tensor, Sequence[int]]:
        """The central crop, and the integers that its image store makes of what the crop returns."""
        made, ratio = object.__new__(self.data.AspectRatioDataset), bucket[1] / bucket[0]
        made.use_central_crop = True
        made.to_ratio, made.ratio_to_bucket = {0: ratio}, {ratio: np.array([bucket[1], bucket[0]])}
        entry, top, left = made.crop(SimpleNamespace(pixel=image, is_latent=False), 0)
        return entry.pixel, (image.shape[1], image.shape[2], int(top), int(left), bucket[1], bucket[0])

    def _made(self, max_area: int, max_side: int, min_side: int, step: int) -> Any:
        made = object.__new__(self.data.AspectRatioDataset)
        made.target_area, made.max_size, made.min_size, made.divisible = max_area, max_side, min_side, step
        made.generate_buckets()
        return made


def _resize(image: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    return resize_array(image, *size)
