"""What an implementation offers to the checks: optional methods over plain tensors and numbers.

An adapter is a class (or an instance of one, or a module) with some of the methods below, found by name, so that it
need not derive from `Adapter`. A method that is absent, or that raises NotImplementedError, is *not offered*: its
checks are skipped by name. An adapter should call the implementation's own functions and compute as little as it can.

Terms: t is a timestep 0 … 999; abar its signal power; alpha = √abar, sigma = √(1 − abar); sigma_edm = sigma / alpha,
∞ at pure noise; v = alpha·eps − sigma·x0; SNR = (alpha / sigma)². Tensors are on the CPU. Sizes are in pixels. Unless
a method says otherwise, the schedule is SDXL's, rescaled to zero terminal SNR.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # pytest loads the plugin, and this with it, wherever the package is installed
    from torch import Tensor

Size = tuple[int, int]  # (width, height) in pixels
Batch = tuple[Any, Sequence[int]]  # (any name of the batch's shape, ids of its items)


class Adapter:
    """Base of an adapter; deriving from it documents the signatures and offers nothing by itself."""

    name: str = ""
    """What is tested, for reports; the class's name if empty."""
    version: str = ""
    """Its version, or the commit that was read."""
    crop_survey: int = 100
    """How many images of about a megapixel the survey of crops may take."""

    def link(self, method: str) -> str:
        """Address of the line of its source that a method calls; empty where there is none."""
        return ""

    # ---- noise ----

    def schedule(self, zero_snr: bool) -> Tensor:
        """abar [1000] of SDXL's schedule: as published, or rescaled to zero terminal SNR."""
        raise NotImplementedError

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t [B, C, H, W] in x0's dtype, for x0 and unit noise eps [B, C, H, W] and t [B] int64."""
        raise NotImplementedError

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network learns to output, with v-prediction; shapes as in `noised`."""
        raise NotImplementedError

    def weight(self, t: Tensor, gamma: float) -> Tensor:
        """MinSNR's weight [B] of the squared error in v at t [B] int64."""
        raise NotImplementedError

    def keyed(self, seed: int, ids: Sequence[int], visit: int, shape: Sequence[int]) -> Tensor:
        """The noise [B, *shape] of the samples `ids` at their `visit`-th visit (the epoch)."""
        raise NotImplementedError

    # ---- sampling ----

    def scalings(self, sigma_edm: Tensor) -> Sequence[Tensor]:
        """The preconditioner's (c_skip, c_out, c_in), each [B], at sigma_edm [B] float32, with σ_data = 1."""
        raise NotImplementedError

    def sigma_to_t(self, sigma_edm: Tensor) -> Tensor:
        """The timesteps [B] with which the network is conditioned at sigma_edm [B] float32."""
        raise NotImplementedError

    def first_step(self, noise: Tensor, network: Callable[[Tensor], Tensor], sigma_next: float) -> Tensor:
        """The state y = x0 + σ·n after the sampler's first step, from its first level to sigma_next, by Euler.

        noise    [B, C, H, W]  unit noise, from which sampling starts; the state is kept in its dtype, as far as the
                 implementation does so
        network  what the network is given at the first level → its v; call it once
        """
        raise NotImplementedError

    def grid(self, kind: str, n: int) -> Tensor:
        """The noise levels sigma_edm of n sampling steps, the final 0 included.

        kind  "native" (evenly spaced timesteps from the last to 0), "trailing", "leading", "karras", "exponential"
              or "laplace"; raise NotImplementedError for one that is not offered
        """
        raise NotImplementedError

    def guide(self, cond: Tensor, uncond: Tensor, scale: float, rescale: float) -> Tensor:
        """Guided v [B, C, H, W]: classifier-free guidance, then the rescale of its standard deviation (0: none)."""
        raise NotImplementedError

    # ---- data ----

    def buckets(self, max_area: int, max_side: int, min_side: int, step: int) -> Sequence[Size]:
        """The bucket sizes (width, height) made from these limits, in pixels."""
        raise NotImplementedError

    def assign(self, sizes: Sequence[Size]) -> Sequence[Size | None]:
        """The bucket (width, height) of each image (width, height), of the default set; None where it is pruned."""
        raise NotImplementedError

    def epoch(
        self, bucket_of: Sequence[int], batch_size: int, world_size: int, seed: int, epoch: int
    ) -> Sequence[Sequence[Batch]]:
        """The batches of one epoch of items 0 … N − 1: for each rank, step after step, (shape, ids).

        bucket_of  bucket of each item        shape  anything that is equal where two batches have equal image sizes
        """
        raise NotImplementedError

    def resume(
        self, bucket_of: Sequence[int], batch_size: int, world_size: int, seed: int, epoch: int, done: int
    ) -> Sequence[Sequence[Batch]]:
        """What `epoch` would still give to a run that was stopped after `done` steps and started again."""
        raise NotImplementedError

    def crop(self, image: Tensor, bucket: Size) -> tuple[Tensor, Sequence[int]]:
        """An image as it is trained on, and what the network is told about it.

        image    [3, H, W]  float32, 0 to 1        bucket  (width, height)
        returns  [3, height, width] of any dtype on the same scale, and the integers (original h, w; crop top, left;
                 target h, w)
        """
        raise NotImplementedError

    # ---- conditioning and files ----

    def chunks(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A prompt's token ids, without BOS and EOS, as rows for CLIP-L and for bigG, each [chunks, 77]."""
        raise NotImplementedError

    def pool(self, states: Sequence[Tensor]) -> Tensor:
        """The pooled states [B, P] of a batch, from those of each prompt's chunks, B × [chunks, P]."""
        raise NotImplementedError

    def size_ints(self, original: Size, crop: tuple[int, int], target: Size) -> Tensor:
        """The six numbers as the network's embedding receives them: h, w; top, left; h, w.

        original, target  (width, height)        crop  (top, left)
        """
        raise NotImplementedError

    def markers(self, keys: Sequence[str]) -> tuple[str, bool]:
        """What a single file is taken for whose extra tensors have these keys.

        returns  "v" or "eps", and whether its schedule is taken to end in zero SNR
        """
        raise NotImplementedError


METHODS = tuple(
    name
    for name, value in vars(Adapter).items()
    if callable(value) and not name.startswith("_") and name != "link"
)


def offers(adapter: object, method: str) -> bool:
    """Whether an adapter has a method of its own of that name."""
    found = getattr(adapter, method, None)
    return callable(found) and getattr(found, "__func__", found) is not getattr(Adapter, method)
