"""The training step on one page: the random draws, the conditioning and the loss (N §2, §4; S §2.2, §2.5).

x_t = alpha · x0 + sigma · eps,  v = alpha · eps − sigma · x0,  loss = weight · mean((v̂ − v)²)

Every random value is a function of (seed, sample id, visit): the same in any batch, on any number of ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from refimpl.diffusion.philox import Purpose, draw_keys, keyed_uniform
from refimpl.diffusion.v_prediction import v_from_output
from refimpl.latents.pixels import from_pixels
from refimpl.model.pipeline import Model
from refimpl.ops import Ops
from refimpl.text.conditioning import apply_dropout, vector_conditioning
from refimpl.text.image_tower import embed_images

Network = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (x_t, t, context, vector) → its output


class TextStates(Protocol):
    """Captions → what the UNet attends to: encoded by the towers, or read from a cache."""

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Context [B, 77·n, D] and pooled state [B, P]."""
        ...

    def null(self, kind: str) -> tuple[Tensor, Tensor]:
        """Context [1, 77, D] and pooled state [1, P] of a dropped caption."""
        ...


@dataclass(frozen=True)
class Conditions:
    """What the network is conditioned on, besides x_t and t.

    context  [B, 77·n, D]  text states that cross-attention reads (N §4.2)
    vector   [B, V]  pooled state, sizes and crop, or an aesthetic score, joined (S §2.2)
    """

    context: Tensor
    vector: Tensor

    def repeated(self, times: int) -> "Conditions":
        """Repeats every row `times` times, the copies next to one another."""
        return Conditions(*(x.repeat_interleave(times, dim=0) for x in (self.context, self.vector)))


@dataclass(frozen=True)
class StepDraws:
    """The random draws for a batch.

    t           [B] int64 timesteps
    is_dropped  [B] bool, whether the caption is replaced by the null condition
    noise, lora_dropout  [B, 2] int64, keys of the noise and of the adapters' dropout
    """

    t: Tensor
    is_dropped: Tensor
    noise: Tensor
    lora_dropout: Tensor


def step_draws(
    seed: int, ids: Tensor, visit: int, timesteps: tuple[int, int], caption_dropout: float
) -> StepDraws:
    """The draws of one visit to each image.

    ids              [B] int64, `sample_id` of each image
    timesteps        first and last timestep that can be drawn, uniformly (S §2.5; a refiner's are the lowest)
    caption_dropout  probability that a caption is replaced
    """
    first, last = timesteps
    purposes = Purpose.TIMESTEP, Purpose.CAPTION_DROPOUT, Purpose.NOISE, Purpose.LORA_DROPOUT
    timestep, caption, noise, lora_dropout = draw_keys(seed, ids, visit, purposes)
    u, chance = keyed_uniform(torch.cat((timestep, caption)), 1)[:, 0].chunk(2)
    return StepDraws(
        t=first + (u * (last + 1 - first)).long(),
        is_dropped=chance < caption_dropout,
        noise=noise,
        lora_dropout=lora_dropout,
    )


@torch.no_grad()
def encode_latents(model: Model, pixels: Tensor, cached: Tensor | None = None) -> Tensor:
    """Latents [B, C, h, w] float32 with mean 0 and standard deviation 1 in each channel (N App. B).

    pixels  [B, 3, H, W] uint8    cached  [B, C, h, w] as the autoencoder gave them, in place of the pixels
    """
    encoded = model.vae.encode(from_pixels(pixels)) if cached is None else cached.float()
    return model.scale_shift.standardise(encoded)


def make_conditions(
    model: Model,
    text_states: TextStates,
    captions: Sequence[str],
    pixels: Tensor,
    size_ints: Tensor,
    scores: Tensor | None = None,
    is_dropped: Tensor | None = None,
    features: Tensor | None = None,
) -> Conditions:
    """What the network is conditioned on for each image.

    pixels      [B, 3, H, W] uint8, read only where an image is the prompt (S §2.6)
    size_ints   [B, 6] int64: original height and width, crop top and left, target height and width (S §2.2)
    scores      [B] float32 aesthetic scores, in place of the target size, where the network is conditioned on them
    is_dropped  [B] bool: whether the caption is replaced, for classifier-free guidance; None replaces none
    features    [B, F] `size_features` of the two, where they were computed beforehand
    """
    context, pooled = text_states(captions)
    if model.image_tower is not None:
        pooled = embed_images(model.image_tower, from_pixels(pixels))
    if is_dropped is not None:
        context, pooled = apply_dropout(context, pooled, is_dropped, text_states.null(model.text.null))
    return Conditions(context, vector_conditioning(pooled, size_ints, scores, features))


def denoising_loss(
    network: Network,
    model: Model,
    conditions: Conditions,
    latents: Tensor,
    key: Tensor,
    t: Tensor,
    weight: Tensor,
    offset: float,
    ops: Ops,
    expected: float | None = None,
    levels: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The weighted v-loss of one forward pass (N §2.1, §2.4).

    network     the model's UNet, possibly wrapped
    latents     [B, C, h, w] float32, standardised: x0
    key         [B, 2] int64: the noise is a function of it alone
    t           [B] int64
    weight      [B] float32
    offset      strength of offset noise (S §2.5); 0 for none
    expected    gradient by each loss that the backward pass will send; another one costs the backend `kernel` a pass
    levels      [B], [B] float64, alpha and sigma at t in the model's schedule, where the parameterisation is defined;
                looked up here, which waits for the device, when left out
    returns     [B] float32: weight · mean over C, h, w of (v̂ − v)²; differentiable in the network's output
    """
    alpha, sigma = model.schedule.at(t) if levels is None else levels
    x_t = ops.add_keyed_noise(latents, key, alpha, sigma, offset)
    output = network(x_t, t, conditions.context, conditions.vector)
    v = v_from_output(output, x_t, alpha, sigma, model.parameterisation, is_defined=levels is not None)
    return ops.keyed_v_loss(v, latents, key, alpha, sigma, weight, offset, expected)
