"""Adapter of Nerogar/OneTrainer and of its data loader, Nerogar/mgds, read from two checkouts."""

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refimpl.conformance.adapter import Adapter, Batch, Size
from refimpl.conformance.adapters.checkouts.checkout import Checkout
from refimpl.conformance.adapters.checkouts.coordinate_resize import resize_coordinates
from refimpl.conformance.adapters.checkouts.sd_scripts import published_scheduler

COMMIT, LOADER_COMMIT = "23df3832e8f213d64c337e39f9365ba46e99fed0", "3a6994ad18a490acc4f3876658167525b7d88da7"
MIXINS = "modules/modelSetup/mixin/"
RESCALE = "modules/util/convert/rescale_noise_scheduler_to_zero_terminal_snr.py"
TABLE = "modules/util/DiffusionScheduleCoefficients.py"
SETUP = "modules/modelSetup/BaseStableDiffusionXLSetup.py"
LOSS, NOISE = MIXINS + "ModelSetupDiffusionLossMixin.py", MIXINS + "ModelSetupDiffusionMixin.py"
LOADER = "src/mgds/pipelineModules/"
BUCKETS, CROP, BATCHES = (
    LOADER + f"{n}.py" for n in ("AspectBucketing", "ScaleCropImage", "AspectBatchSorting")
)
QUANTUM, SIDE = 64, 1024  # of SDXL's data loader, and its default resolution


class _Module:
    """Stands where the loader's base class of pipeline modules is."""


class _Access:
    """Stands where the loader's base class of random access is."""


class _Given(Exception):
    """Ends a prediction once the network has been given its sizes."""


class OneTrainer(Adapter):
    """What SDXL training calls with rescale_noise_scheduler_to_zero_terminal_snr and MIN_SNR_GAMMA.

    Its default precision, train_dtype FLOAT_16 with fallback_train_dtype BFLOAT_16, encodes to latents in bfloat16.
    """

    name = "OneTrainer"
    crop_survey = 300

    def __init__(self) -> None:
        self.code = Checkout("Nerogar/OneTrainer", COMMIT)
        self.loader = Checkout("Nerogar/mgds", LOADER_COMMIT)
        self.version = f"{self.code.version}, mgds {self.loader.version}"
        types = {
            "torch": torch,
            "Tensor": Tensor,
            "ABCMeta": type,
            "Callable": Callable,
            "TrainConfig": object,
        }
        rescale = self.code.take(
            RESCALE, "rescale_noise_scheduler_to_zero_terminal_snr", torch=torch, DDIMScheduler=object
        )
        self.rescale: Any = rescale.rescale_noise_scheduler_to_zero_terminal_snr
        table = self.code.take(TABLE, "DiffusionScheduleCoefficients", torch=torch, Tensor=Tensor)
        self.table: Any = table.DiffusionScheduleCoefficients
        types["DiffusionScheduleCoefficients"] = self.table
        self.loss: Any = self.code.take(
            LOSS, "ModelSetupDiffusionLossMixin", **types
        ).ModelSetupDiffusionLossMixin()
        self.noise: Any = self.code.take(
            NOISE, "ModelSetupDiffusionMixin", **types
        ).ModelSetupDiffusionMixin()
        self.predict: Any = self.code.take(
            SETUP, "BaseStableDiffusionXLSetup.predict",
            torch=torch, Random=random.Random, multi=SimpleNamespace(world_size=lambda: 1, rank=lambda: 0),
            StableDiffusionXLModel=object, TrainConfig=object, TrainProgress=object,
        ).predict  # fmt: skip
        bases = {"PipelineModule": _Module, "RandomAccessPipelineModule": _Access}
        self.bucketing: Any = self.loader.take(
            BUCKETS,
            "AspectBucketing",
            **bases,
            Random=random.Random,
            Any=Any,
            np=np,
            math=math,
            itertools=itertools,
        ).AspectBucketing
        self.scale_crop: Any = self.loader.take(
            CROP, "ScaleCropImage", **bases, transforms=_transforms(), functional=SimpleNamespace(crop=_crop)
        ).ScaleCropImage
        self.sorting: Any = self.loader.take(
            BATCHES, "AspectBatchSorting",
            PipelineModule=_Module, SingleVariationRandomAccessPipelineModule=_Access,
        ).AspectBatchSorting  # fmt: skip
        self.assigned = self._bucketing(QUANTUM)
        self.assigned.bucket_resolutions, aspects = self.assigned._AspectBucketing__create_automatic_buckets(
            [SIDE]
        )
        self.assigned.bucket_aspects = {side: np.array(values) for side, values in aspects.items()}

    def link(self, method: str) -> str:
        """The line of the function that the method calls."""
        own = {
            "schedule": (RESCALE, "rescale_noise_scheduler_to_zero_terminal_snr"),
            "noised": (NOISE, "ModelSetupDiffusionMixin", "_add_noise_discrete"),
            "weight": (LOSS, "ModelSetupDiffusionLossMixin", "__min_snr_weight"),
            "size_ints": (SETUP, "BaseStableDiffusionXLSetup.predict"),
        }
        loaders = {
            "assign": (BUCKETS, "AspectBucketing", "__get_bucket"),
            "crop": (CROP, "ScaleCropImage", "get_item"),
            "epoch": (BATCHES, "AspectBatchSorting", "__shuffle"),
        }
        if method in own:
            return self.code.link(*own[method])
        return self.loader.link(*loaders[method]) if method in loaders else ""

    def schedule(self, zero_snr: bool) -> Tensor:
        """The table that noise is added with: that of the betas."""
        return self.table.from_betas(self._betas(zero_snr)).alphas_cumprod

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """_add_noise_discrete."""
        return self.noise._add_noise_discrete(x0, eps, t, self._betas(True))

    def weight(self, t: Tensor, gamma: float) -> Tensor:
        """__min_snr_weight, with the coefficients that _diffusion_losses gives it."""
        self.loss._ModelSetupDiffusionLossMixin__coefficients = self.table.from_betas(self._betas(True))
        return self.loss._ModelSetupDiffusionLossMixin__min_snr_weight(t, gamma, True, torch.device("cpu"))

    def assign(self, sizes: Sequence[Size]) -> Sequence[Size | None]:
        """AspectBucketing at 1024, quantised to 64."""
        found = []
        for width, height in sizes:
            bucket = self.assigned._AspectBucketing__get_bucket(None, height, width, SIDE)
            found.append((bucket[1], bucket[0]))
        return found

    def crop(self, image: Tensor, bucket: Size) -> tuple[Tensor, Sequence[int]]:
        """AspectBucketing's scale and ScaleCropImage without jitter, for one fixed resolution."""
        height, width = image.shape[1:]
        sizing = self._bucketing(1)
        sizing._get_rand = lambda *_: random.Random(0)
        given = {"resolution": (height, width), "target": f"{bucket[0]}x{bucket[1]}"}
        sizing._get_previous_item = lambda variation, name, index: given[name]
        sized = sizing.get_item(0, 0)
        cropping = self.scale_crop(["image"], "scale", "crop", "jitter", "offset")
        cropping._get_rand = lambda *_: random.Random(0)
        passed = {"image": image, "jitter": False, **sized}
        cropping._get_previous_item = lambda variation, name, index: passed[name]
        item = cropping.get_item(0, 0)
        return item["image"], (height, width, *item["offset"], bucket[1], bucket[0])

    def epoch(
        self, bucket_of: Sequence[int], batch_size: int, world_size: int, seed: int, epoch: int
    ) -> Sequence[Sequence[Batch]]:
        """AspectBatchSorting with the global batch size, of which each rank takes its part of every batch."""
        sorting = self.sorting("resolution", ["image"], batch_size * world_size)
        sorting.current_variation = epoch
        sorting._get_rand = lambda variation: random.Random(seed * 1000 + variation)
        sorting._get_previous_length = lambda name: len(bucket_of)
        sorting._get_previous_item = lambda variation, name, index: bucket_of[index]
        sorting.start(epoch)
        size = batch_size * world_size
        whole = [sorting.index_list[i : i + size] for i in range(0, len(sorting.index_list), size)]
        return [
            [(bucket_of[ids[0]], ids[rank * batch_size : (rank + 1) * batch_size]) for ids in whole]
            for rank in range(world_size)
        ]

    def size_ints(self, original: Size, crop: tuple[int, int], target: Size) -> Tensor:
        """The time_ids that predict gives to its UNet for a latent in bfloat16."""
        given: dict[str, Any] = {}

        def unet(**arguments: Any) -> None:
            given.update(arguments["added_cond_kwargs"])
            raise _Given

        latent, none = torch.zeros(1, 4, 2, 2, dtype=torch.bfloat16), torch.zeros(1, 1)
        sizes = {"original_resolution": original[::-1], "crop_offset": crop, "crop_resolution": target[::-1]}
        batch: dict[str, Any] = defaultdict(lambda: None, latent_image=latent)
        batch |= {name: [torch.tensor([side]) for side in pair] for name, pair in sizes.items()}
        setup = SimpleNamespace(
            train_device="cpu", _add_noise_discrete=self.noise._add_noise_discrete,
            _get_timestep_discrete=lambda *_: torch.zeros(1, dtype=torch.long),
            _create_noise=lambda latents, *_: latents,
        )  # fmt: skip
        model = SimpleNamespace(
            autocast_context=nullcontext(), vae=SimpleNamespace(config={"scaling_factor": 1.0}), unet=unet,
            encode_text=lambda **_: (), combine_text_encoder_output=lambda: (none, none),
            noise_scheduler=SimpleNamespace(config={"num_train_timesteps": 1000}, betas=self._betas(True)),
            train_dtype=SimpleNamespace(torch_dtype=lambda: torch.float16),
        )  # fmt: skip
        with suppress(_Given):
            self.predict(setup, model, batch, _configuration(), SimpleNamespace(global_step=0))
        return given["time_ids"][0]

    def _betas(self, zero_snr: bool) -> Tensor:
        scheduler = published_scheduler()
        return self.rescale(scheduler) if zero_snr else scheduler.betas

    def _bucketing(self, quantum: int) -> Any:
        return self.bucketing(
            quantum, "resolution", "target", None, None, "frames", False, "scale", "crop", "possible"
        )


def _configuration() -> SimpleNamespace:
    """What a prediction reads of the settings of a training of the UNet alone."""
    encoder = SimpleNamespace(dropout_probability=0.0)
    return SimpleNamespace(
        train_device="cpu", text_encoder=encoder, text_encoder_2=encoder,
        text_encoder_layer_skip=0, text_encoder_2_layer_skip=0,
        train_text_encoder_or_embedding=lambda: False, train_text_encoder_2_or_embedding=lambda: False,
        model_type=SimpleNamespace(has_conditioning_image_input=lambda: False, has_mask_input=lambda: False),
    )  # fmt: skip


def _transforms() -> SimpleNamespace:
    def resize(size: Sequence[int], interpolation: object, antialias: bool) -> Callable[[Tensor], Tensor]:
        return lambda image: resize_coordinates(image, size[1], size[0])

    return SimpleNamespace(Resize=resize, InterpolationMode=SimpleNamespace(BILINEAR=None))


def _crop(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return image[:, top : top + height, left : left + width]
