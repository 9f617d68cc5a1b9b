"""Adapter of this project: what it trains and samples with."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import refimpl
from refimpl.conformance.adapter import Adapter, Batch, Size
from refimpl.conformance.checks.exact import exact_schedule
from refimpl.data.bucket_sizes import PRESETS, make_buckets
from refimpl.data.buckets import assign_and_prune
from refimpl.data.config import Mode
from refimpl.data.crop import SizeInts, cover_and_crop
from refimpl.data.plan import Plan, plan_epoch
from refimpl.diffusion.min_snr import min_snr_weight
from refimpl.diffusion.philox import Purpose, draw_key, keyed_normal
from refimpl.diffusion.preconditioner import scalings
from refimpl.diffusion.v_prediction import add_noise, v_target
from refimpl.errors import InputError
from refimpl.interop.single_file.prediction_markers import detect
from refimpl.sample.grids import GRIDS
from refimpl.sample.guidance import cfg
from refimpl.sample.guidance import rescale as rescale_std
from refimpl.sample.stepping import begin
from refimpl.text.conditioning import pool_chunks
from refimpl.text.sinusoid import embedded_values
from refimpl.text.tokenizer import Tokenizer

LEVELS = 8  # images of 8 bits that show a small coordinate image to an eighth of a level
SMALL = 256  # pixels a side, below which that is needed
PRUNED_ABOVE = math.log(1.5)  # of log aspect error: what would lose more than a third of its area
SPECIAL = {"bos_id": 49406, "eos_id": 49407, "pad_l_id": 49407, "pad_g_id": 0, "vocabulary_size": 49408}


class Reference(Adapter):
    """This project's functions."""

    name = "refimpl"
    version = refimpl.__version__
    crop_survey = 12
    mode: Mode = "global"
    """how epochs are planned"""

    def schedule(self, zero_snr: bool) -> Tensor:
        """The schedule's alpha, squared."""
        return exact_schedule(zero_snr).alpha ** 2

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Of the zero-SNR schedule."""
        return add_noise(x0, eps, *exact_schedule(True).at(t))

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Of the zero-SNR schedule."""
        return v_target(x0, eps, *exact_schedule(True).at(t))

    def weight(self, t: Tensor, gamma: float) -> Tensor:
        """The policy "paper"."""
        return min_snr_weight(exact_schedule(True).snr[t], gamma)

    def keyed(self, seed: int, ids: Sequence[int], visit: int, shape: Sequence[int]) -> Tensor:
        """By Philox and Box–Muller."""
        return keyed_normal(draw_key(seed, torch.tensor(ids), visit, Purpose.NOISE), shape)

    def scalings(self, sigma_edm: Tensor) -> Sequence[Tensor]:
        """With σ_data = 1."""
        return scalings(sigma_edm)

    def sigma_to_t(self, sigma_edm: Tensor) -> Tensor:
        """Of the zero-SNR schedule."""
        return exact_schedule(True).sigma_edm_to_t(sigma_edm)

    def first_step(self, noise: Tensor, network: Callable[[Tensor], Tensor], sigma_next: float) -> Tensor:
        """From ∞, as every sampler does."""
        grid = torch.tensor([math.inf, sigma_next, 0.0], dtype=torch.float64)
        return begin(lambda x, sigma: network(x), noise, grid, None).y

    def grid(self, kind: str, n: int) -> Tensor:
        """All kinds but leading, which is refused on a zero-SNR schedule."""
        try:
            return GRIDS[kind](exact_schedule(True), n)
        except InputError as error:
            if kind == "leading":
                raise NotImplementedError(str(error)) from error
            raise

    def guide(self, cond: Tensor, uncond: Tensor, scale: float, rescale: float) -> Tensor:
        """On v."""
        return rescale_std(cfg(cond, uncond, scale), cond, rescale)

    def buckets(self, max_area: int, max_side: int, min_side: int, step: int) -> Sequence[Size]:
        """N's algorithm."""
        return make_buckets(max_area, max_side, min_side, step)

    def assign(self, sizes: Sequence[Size]) -> Sequence[Size | None]:
        """To the preset novelai_v3, by log aspect; pruned is what would lose more than a third of its area."""
        buckets = PRESETS["novelai_v3"]
        widths, heights = zip(*sizes, strict=True)
        found = assign_and_prune(widths, heights, buckets, max_log_error=PRUNED_ABOVE)
        return [
            None if pruned else buckets[index]
            for index, pruned in zip(found.index, found.pruned, strict=True)
        ]

    def epoch(
        self, bucket_of: Sequence[int], batch_size: int, world_size: int, seed: int, epoch: int
    ) -> Sequence[Sequence[Batch]]:
        """Of the adapter's mode."""
        return batches_of(plan_epoch(bucket_of, batch_size, seed, epoch, world_size, self.mode), 0)

    def resume(
        self, bucket_of: Sequence[int], batch_size: int, world_size: int, seed: int, epoch: int, done: int
    ) -> Sequence[Sequence[Batch]]:
        """The same plan, from the cursor on."""
        return batches_of(plan_epoch(bucket_of, batch_size, seed, epoch, world_size, self.mode), done)

    def crop(self, image: Tensor, bucket: Size) -> tuple[Tensor, Sequence[int]]:
        """Of 8-bit images; a small one is shown several times, each a fraction of a level brighter."""
        shown = LEVELS if max(image.shape) < SMALL else 1
        crops = []
        for number in range(shown):
            levels = (image * 254 + (number + 0.5) / shown).floor().to(torch.uint8)
            array = np.ascontiguousarray(levels.permute(1, 2, 0).numpy())
            crops.append(cover_and_crop(array, bucket, np.random.default_rng(0)))
        pixels = np.mean([cropped for cropped, _ in crops], axis=0)
        return torch.from_numpy(pixels).permute(2, 0, 1) / 254, crops[0][1]

    def chunks(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The rows of both encoders."""
        tokenizer = Tokenizer(_Ids(), **SPECIAL)  # pyright: ignore[reportArgumentType]
        chunks = tokenizer.chunks(" ".join(map(str, ids)))
        return tokenizer.rows_l(chunks), tokenizer.rows_g(chunks)

    def pool(self, states: Sequence[Tensor]) -> Tensor:
        """The pooling "mean"."""
        return pool_chunks([list(chunks.unbind(0)) for chunks in states], "mean")

    def size_ints(self, original: Size, crop: tuple[int, int], target: Size) -> Tensor:
        """What the sinusoidal features are computed of: the integers of `SizeInts`, in float32."""
        ints = SizeInts(
            original_height=original[1], original_width=original[0],
            crop_top=crop[0], crop_left=crop[1],
            target_height=target[1], target_width=target[0],
        )  # fmt: skip
        return embedded_values(torch.tensor([ints]))[0]

    def markers(self, keys: Sequence[str]) -> tuple[str, bool]:
        """Of empty tensors."""
        found = detect({key: torch.empty(0) for key in keys}, {}, Path("model.safetensors"))
        return found.kind, found.zero_terminal_snr


def batches_of(plan: Plan, start: int) -> list[list[Batch]]:
    """The batches of every rank from step `start` on."""
    ranks = range(plan.world_size)
    return [[(bucket, items.tolist()) for bucket, items in plan.batches(rank, start)] for rank in ranks]


class _Ids:
    """A vocabulary in which numbers, separated by spaces, are token ids."""

    def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}
