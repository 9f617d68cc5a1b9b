"""Adapter of kohya-ss/sd-scripts, read from a checkout."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

from refimpl.conformance.adapter import Adapter, Size
from refimpl.conformance.adapters.checkouts.checkout import Checkout
from refimpl.conformance.adapters.checkouts.coordinate_resize import resize_array
from refimpl.diffusion.schedule import BETA_FIRST, BETA_LAST, TIMESTEPS

COMMIT = "48d368fa557731ad0488c07304dfeba8c07910eb"
NOISE = "library/custom_train_functions.py"
TRAIN = "library/train_util.py"
BUCKETS = "library/model_util.py"
SIZES = "library/sdxl_train_util.py"
TOKENS = "library/strategy_base.py"
LONGEST = 225  # tokens, the largest --max_token_length


class SdScripts(Adapter):
    """What sdxl_train.py calls with --v_parameterization, --zero_terminal_snr and --min_snr_gamma."""

    name = "kohya sd-scripts"
    crop_survey = 2000

    def __init__(self) -> None:
        self.code = Checkout("kohya-ss/sd-scripts", COMMIT)
        self.version = self.code.version
        types = {"List": list, "Optional": Optional, "Tuple": tuple, "torch": torch, "np": np, "math": math}
        silent = SimpleNamespace(info=lambda *_: None)
        self.noise: Any = self.code.take(
            NOISE,
            "prepare_scheduler_for_custom_training",
            "fix_noise_scheduler_betas_for_zero_terminal_snr",
            "apply_snr_weight",
            **types, logger=silent, DDPMScheduler=object, Number=float,
        )  # fmt: skip
        sizes = self.code.take(BUCKETS, "make_bucket_resolutions", **types)
        self.make_bucket_resolutions: Any = sizes.make_bucket_resolutions
        train: Any = self.code.take(
            TRAIN, "BucketManager", "trim_and_resize_if_required",
            **types, model_util=sizes, resize_image=_resize, random=None,
        )  # fmt: skip
        self.trim_and_resize: Any = train.trim_and_resize_if_required
        self.manager: Any = train.BucketManager(False, (1024, 1024), 256, 2048, 64)
        self.manager.make_buckets()

    def link(self, method: str) -> str:
        """The line of the function that the method calls."""
        called = {
            "schedule": (NOISE, "fix_noise_scheduler_betas_for_zero_terminal_snr"),
            "weight": (NOISE, "apply_snr_weight"),
            "buckets": (BUCKETS, "make_bucket_resolutions"),
            "assign": (TRAIN, "BucketManager", "select_bucket"),
            "crop": (TRAIN, "BucketManager", "get_crop_ltrb"),
        }
        return self.code.link(*called[method]) if method in called else ""

    def schedule(self, zero_snr: bool) -> Tensor:
        """The scheduler's table after fix_noise_scheduler_betas_for_zero_terminal_snr."""
        scheduler = published_scheduler()
        if zero_snr:
            self.noise.fix_noise_scheduler_betas_for_zero_terminal_snr(scheduler)
        return scheduler.alphas_cumprod

    def weight(self, t: Tensor, gamma: float) -> Tensor:
        """apply_snr_weight, after the two preparations in the order of sdxl_train.py."""
        scheduler = published_scheduler()
        self.noise.prepare_scheduler_for_custom_training(scheduler, "cpu")
        self.noise.fix_noise_scheduler_betas_for_zero_terminal_snr(scheduler)
        return self.noise.apply_snr_weight(torch.ones(len(t)), t, scheduler, gamma, v_prediction=True)

    def buckets(self, max_area: int, max_side: int, min_side: int, step: int) -> Sequence[Size]:
        """make_bucket_resolutions, which takes the area as a width and a height."""
        side = math.isqrt(max_area)
        reso = (side, side) if side * side == max_area else (512, max_area // 512)
        return self.make_bucket_resolutions(reso, min_side, max_side, step)

    def assign(self, sizes: Sequence[Size]) -> Sequence[Size | None]:
        """select_bucket, of 1024 × 1024 pixels, sides from 256 to 2048."""
        return [self.manager.select_bucket(width, height)[0] for width, height in sizes]

    def crop(self, image: Tensor, bucket: Size) -> tuple[Tensor, Sequence[int]]:
        """trim_and_resize_if_required without random crop, and what the data set makes of its result."""
        height, width = image.shape[1:]
        _, resized, _ = _manager_of(self.manager, bucket).select_bucket(width, height)
        found = self.trim_and_resize(False, image.permute(1, 2, 0).numpy(), bucket, resized)
        cropped, (original_width, original_height), (left, top, _, _) = found
        ints = (original_height, original_width, int(top), int(left), bucket[1], bucket[0])
        return torch.from_numpy(cropped).permute(2, 0, 1), ints


def published_scheduler() -> SimpleNamespace:
    """The fields of a DDPMScheduler of SDXL that these functions read and write, in its float32."""
    betas = torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, TIMESTEPS, dtype=torch.float32) ** 2
    return SimpleNamespace(betas=betas, alphas=1 - betas, alphas_cumprod=torch.cumprod(1 - betas, dim=0))


def _manager_of(manager: Any, bucket: Size) -> Any:
    """The manager with this one bucket, so that its own lines fit an image to it."""
    one = object.__new__(type(manager))
    one.__dict__ |= manager.__dict__ | {"resos": [], "reso_to_id": {}, "buckets": []}
    one.set_predefined_resos([bucket])
    return one


def _resize(
    image: np.ndarray, width: int, height: int, resized_width: int, resized_height: int, how: object = None
) -> np.ndarray:
    return resize_array(image, resized_width, resized_height)
