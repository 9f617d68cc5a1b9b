"""Prompts → images: keyed noise → grid → guided sampler → VAE (N §2.3, §5, App. A)."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from refimpl.data.crop import SizeInts, conditioning_at_inference
from refimpl.diffusion.philox import Purpose, draw_key, keyed_normal, sample_id
from refimpl.diffusion.preconditioner import alpha_sigma
from refimpl.diffusion.v_prediction import v_from_output
from refimpl.errors import InputError
from refimpl.interop.run_folder import Model
from refimpl.sample.config import SampleConfig
from refimpl.sample.grids import grid_by_name
from refimpl.sample.guidance import cfg, rescale
from refimpl.sample.samplers import sample_by_name
from refimpl.sample.state import PredictV, sdedit_start
from refimpl.text.conditioning import chunk_counts, encode_prompts, vector_conditioning


@torch.no_grad()
def draw_images(
    model: Model,
    config: SampleConfig,
    weights: Mapping[str, Tensor] | None = None,
    start_sigma: float | None = None,
    batch_size: int = 16,
) -> Tensor:
    """Draws `config.seeds` images of each prompt.

    weights      UNet weights to use instead of the model's own (a moving average, say)
    start_sigma  largest sigma_edm of the grid; None starts at the schedule's end, ∞ with zero terminal SNR
    batch_size   images per network call; but for rounding no image depends on it, nor on the other prompts
    returns      [prompts, seeds, 3, H, W] float32 in 0 … 1
    Raises InputError when the size is not a multiple of the VAE's factor, or the grid does not fit the schedule.
    """
    factor = model.vae.config.factor
    if config.height % factor or config.width % factor:
        raise InputError(
            f"an image of {config.width}×{config.height} px is not a multiple of the VAE's {factor}"
        )
    schedule = model.diffusion.schedule()
    sigmas = grid_by_name(config.grid, schedule, config.steps, sigma_max=start_sigma)
    size = conditioning_at_inference(config.height, config.width)
    latent_shape = (model.vae.config.latent_channels, config.height // factor, config.width // factor)
    device = next(model.unet.parameters()).device

    # Made first, so that too many images for the memory are refused before any is drawn.
    images = torch.empty(len(config.prompts), config.seeds, 3, config.height, config.width)
    for rows in _batches(model, config, batch_size):
        prompts = [config.prompts[row] for row, _ in rows]
        ids = torch.tensor([sample_id(prompt) for prompt in prompts], device=device)
        numbers = torch.tensor([number for _, number in rows], device=device)
        key = draw_key(config.seed, ids, numbers, Purpose.INIT_NOISE)
        noise = keyed_normal(key, latent_shape)
        predict_v = guided_network(model, prompts, size, config, weights)
        # At ∞ the noise itself; at a finite level noise around zero, which tells the network that x0 has mean 0.
        x = sdedit_start(torch.zeros_like(noise), noise, float(sigmas[0]))
        x0 = sample_by_name(config.sampler, predict_v, x, sigmas, key=key)
        decoded = model.vae.decode(model.scale_shift.restore(x0.float()))
        if not decoded.isfinite().all():
            raise InputError(
                f"an image of {prompts[0]!r} or of a prompt drawn with it is not finite: the weights are not, or "
                f"sample.guidance {config.guidance:g} is too large; lower it, or use another checkpoint"
            )
        for (row, number), image in zip(rows, (decoded.float() / 2 + 0.5).clamp(0, 1).cpu(), strict=True):
            images[row, number] = image
    return images


def _batches(model: Model, config: SampleConfig, batch_size: int) -> Iterator[list[tuple[int, int]]]:
    """(prompt's row, number) of all images in batches of equal context length.

    A short prompt beside a long one would be padded with chunks that its network sees (N §4.2).
    """
    counts = chunk_counts(config.prompts, model.tokenizer)
    for chunks in sorted(set(counts)):
        places = [
            (row, n) for row, count in enumerate(counts) if count == chunks for n in range(config.seeds)
        ]
        for start in range(0, len(places), batch_size):
            yield places[start : start + batch_size]


def guided_network(
    model: Model,
    prompts: Sequence[str],
    size: SizeInts,
    config: SampleConfig,
    weights: Mapping[str, Tensor] | None = None,
) -> PredictV:
    """The network as v(x; σ) under classifier-free guidance, one row per prompt.

    returns  predict_v(x [B, C, h, w] in VP form, sigma_edm scalar) → v [B, C, h, w]
    """
    schedule, parameterisation = model.diffusion.schedule(), model.diffusion.parameterisation
    device = next(model.unet.parameters()).device
    sizes = torch.tensor([size] * len(prompts), device=device)
    context, pooled = encode_prompts(
        prompts, model.tokenizer, model.encoder_l, model.encoder_g, pooling=model.text.pooling
    )
    null_context, null_pooled = model.null_condition()
    conditions = [(context, vector_conditioning(pooled, sizes))]
    if config.guidance != 1:
        null_context = null_context.repeat(len(prompts), context.shape[1] // null_context.shape[1], 1)
        null_vector = vector_conditioning(null_pooled.expand(len(prompts), -1), sizes)
        conditions.append((null_context, null_vector))

    def predict_v(x: Tensor, sigma_edm: Tensor) -> Tensor:
        t = schedule.sigma_edm_to_t(sigma_edm).to(device).expand(len(prompts))
        alpha, sigma = alpha_sigma(sigma_edm)
        arguments = [(x, t, *condition) for condition in conditions]
        outputs = [
            model.unet(*a) if weights is None else functional_call(model.unet, dict(weights), a)
            for a in arguments
        ]
        v = [v_from_output(output, x, alpha, sigma, parameterisation) for output in outputs]
        if len(v) == 1:
            return v[0]
        return rescale(cfg(v[0], v[1], config.guidance), v[0], config.rescale)

    return predict_v
