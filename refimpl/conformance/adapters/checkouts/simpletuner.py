"""Adapter of bghira/SimpleTuner, read from a checkout."""

import math
import os
import time
from collections.abc import Sequence
from math import sqrt
from numbers import Real
from types import SimpleNamespace
from typing import Any, Union

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from refimpl.conformance.adapter import Adapter, Size
from refimpl.conformance.adapters.checkouts.checkout import Checkout
from refimpl.conformance.adapters.checkouts.coordinate_resize import resize_coordinates
from refimpl.conformance.adapters.checkouts.sd_scripts import published_scheduler

COMMIT = "bc8e6ab7738ce457a2ed8eb2d26cadd91c6442cb"
HELPERS = "simpletuner/helpers/"
NOISE, WEIGHT = HELPERS + "training/custom_schedule.py", HELPERS + "training/min_snr_gamma.py"
COLLATE, SIZES = HELPERS + "training/collate.py", HELPERS + "multiaspect/image.py"
SAMPLE, CROPPING = (HELPERS + f"image_manipulation/{name}.py" for name in ("training_sample", "cropping"))
LATENT = 8  # pixels of a latent's
ALIGNMENT = 64  # pixels, of which the sides of its buckets are multiples
SILENT = SimpleNamespace(debug=lambda *_: None)


class _Picture:
    """Stands where Pillow's image is: [3, H, W] of floats, which eight bits would round."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self.size = (pixels.shape[2], pixels.shape[1])

    def convert(self, mode: str) -> "_Picture":
        return self

    def resize(self, size: Size, resampling: object) -> "_Picture":
        return _Picture(resize_coordinates(self.pixels, int(size[0]), int(size[1])))

    def crop(self, box: tuple[int, int, int, int]) -> "_Picture":
        left, top, right, bottom = box
        return _Picture(self.pixels[:, top:bottom, left:right])


class SimpleTuner(Adapter):
    """Its zero-SNR rescale, MinSNR, and size conditioning with its default bfloat16; areas of one megapixel.

    Crops are centred. Where its random ones lie is decided by another package, which says nothing of it.
    """

    name = "SimpleTuner"
    crop_survey = 300

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
        self.alignment, self.backend = ALIGNMENT, {}
        tracker = SimpleNamespace(
            get_args=lambda: SimpleNamespace(
                aspect_bucket_alignment=self.alignment, aspect_bucket_rounding=2
            ),
            get_data_backend_config=lambda data_backend_id: self.backend,
            get_metadata_by_filepath=lambda path, data_backend_id: {},
            get_model=lambda: None,
            get_webhook_handler=lambda: None,
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

        pictures = SimpleNamespace(Image=_Picture, Resampling=SimpleNamespace(LANCZOS=None))
        cropping = self.code.take(
            CROPPING, "BaseCropping", "CenterCropping", Union=Union, Image=pictures, np=np, logger=SILENT
        )
        self.sample: Any = self.code.take(
            SAMPLE, "TrainingSample", "PreparedSample",
            StateTracker=tracker, MultiaspectImage=self.sizes, Image=pictures, np=np, os=os, time=time, sqrt=sqrt,
            logger=SILENT, BatchedTrainingSamples=SimpleNamespace, exif_transpose=lambda image: image,
            crop_handlers={"center": cropping.CenterCropping},
            resize_helpers={"pixel": self.sizes.calculate_new_size_by_pixel_edge},
        ).TrainingSample  # fmt: skip

    def link(self, method: str) -> str:
        """The line of the function that the method calls."""
        called = {
            "schedule": (NOISE, "enforce_zero_terminal_snr"),
            "weight": (WEIGHT, "compute_snr"),
            "size_ints": (COLLATE, "compute_time_ids"),
            "assign": (SIZES, "MultiaspectImage", "calculate_new_size_by_pixel_area"),
            "crop": (SAMPLE, "TrainingSample", "prepare"),
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

    def crop(self, image: Tensor, bucket: Size) -> tuple[Tensor, Sequence[int]]:
        """TrainingSample.prepare of a data set of this one bucket's aspect and edge, and its compute_time_ids."""
        upright = image.shape[2] < image.shape[1]
        self.backend = {
            "crop": True, "crop_style": "center", "crop_aspect": "closest",
            "crop_aspect_buckets": [bucket[0] / bucket[1]],
            "resolution_type": "pixel", "resolution": bucket[0] if upright else bucket[1],
        }  # fmt: skip
        self.alignment = math.gcd(*bucket, ALIGNMENT)
        try:
            found = self.sample(_Picture(image), "").prepare()
        finally:
            self.alignment = ALIGNMENT
        latent = (4, bucket[1] / LATENT, bucket[0] / LATENT)
        told = self.collate.compute_time_ids(
            found.intermediary_size, latent, torch.float32, LATENT, list(found.crop_coordinates)
        )
        return found.image.pixels, told[0].int().tolist()

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
