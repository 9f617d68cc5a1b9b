"""Prompts → images: keyed noise → grid → guided sampler → refiner → VAE (N §2.3, §5, App. A; S §2.5)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from refimpl.data.crop import conditioning_at_inference
from refimpl.diffusion.philox import Purpose, draw_key, keyed_normal, sample_id
from refimpl.errors import InputError
from refimpl.model.pipeline import Model
from refimpl.sample.config import SampleConfig
from refimpl.sample.grids import grid_of_settings
from refimpl.sample.images.guided_network import guided_network
from refimpl.sample.images.refiner import Refiner, check_same_latents, finished_by_refiner, refined
from refimpl.sample.samplers import sample_by_name
from refimpl.sample.stepping import sdedit_start
from refimpl.text.conditioning import chunk_counts


@torch.no_grad()
def draw_images(
    model: Model,
    config: SampleConfig,
    start_sigma: float | None = None,
    batch_size: int = 16,
    refiner: Refiner | None = None,
    image_prompt: Tensor | None = None,
) -> Tensor:
    """Draws `config.seeds` images of each prompt.

    start_sigma  largest sigma_edm of the grid; None starts at the schedule's end, ∞ with zero terminal SNR
    batch_size   images per network call; apart from rounding, no image depends on it or on the other prompts
    refiner      refines at the lowest noise levels, on the model's device
    image_prompt [3, H, W] in −1 … 1, whose embedding replaces every prompt's pooled state (S §2.6)
    returns      [prompts, seeds, 3, H, W] float32 in 0 … 1
    Raises InputError when the size is not a multiple of the VAE's factor, the grid does not fit the schedule, the
    refiner's latents are scaled differently, or the model takes no image prompt.
    """
    if refiner is not None:
        check_same_latents(model, refiner.model)
    factor = model.vae.config.factor
    if config.height % factor or config.width % factor:
        raise InputError(
            f"an image of {config.width}×{config.height} px is not a multiple of the VAE's {factor}"
        )
    schedule = model.schedule
    latent_size = (config.height // factor, config.width // factor)
    sigmas = grid_of_settings(config, schedule, latent_size, start_sigma)
    size = conditioning_at_inference(config.height, config.width)
    latent_shape = (model.vae.config.latent_channels, *latent_size)
    device = next(model.unet.parameters()).device

    # Allocated first, so that too many images for the memory fail before any is drawn.
    images = torch.empty(len(config.prompts), config.seeds, 3, config.height, config.width)
    for rows in _batches(model, config, batch_size):
        prompts = [config.prompts[row] for row, _ in rows]
        ids = torch.tensor([sample_id(prompt) for prompt in prompts], device=device)
        numbers = torch.tensor([number for _, number in rows], device=device)
        key = draw_key(config.seed, ids, numbers, Purpose.INIT_NOISE)
        noise = keyed_normal(key, latent_shape)
        predict_v = guided_network(model, prompts, size, config, image_prompt)
        if refiner is not None and refiner.mode == "last":
            last_steps = guided_network(refiner.model, prompts, size, config)
            predict_v = finished_by_refiner(predict_v, last_steps, refiner.sigma_edm)
        # At ∞, the noise itself; at a finite level, noise around zero, which tells the network that x0 has mean 0.
        x = sdedit_start(torch.zeros_like(noise), noise, float(sigmas[0]))
        x0 = sample_by_name(config.sampler, predict_v, x, sigmas, key=key)
        if refiner is not None and refiner.mode == "sdedit":
            x0 = refined(refiner, x0, prompts, ids, numbers, size, config)
        decoded = model.vae.decode(model.scale_shift.restore(x0.float()))
        if not decoded.isfinite().all():
            raise InputError(
                f"an image of {prompts[0]!r} or of a prompt in its batch is not finite: the weights are not, or "
                f"sample.guidance {config.guidance:g} is too large; lower it, or use another checkpoint"
            )
        for (row, number), image in zip(rows, (decoded.float() / 2 + 0.5).clamp(0, 1).cpu(), strict=True):
            images[row, number] = image
    return images


def _batches(model: Model, config: SampleConfig, batch_size: int) -> Iterator[list[tuple[int, int]]]:
    """Batches of (index of the prompt, number of the image), each of equal context length.

    Batched with a long prompt, a short one would be padded with chunks that the network attends to (N §4.2).
    """
    counts = chunk_counts(config.prompts, model.tokenizer)
    for chunks in sorted(set(counts)):
        places = [
            (row, n) for row, count in enumerate(counts) if count == chunks for n in range(config.seeds)
        ]
        for start in range(0, len(places), batch_size):
            yield places[start : start + batch_size]
