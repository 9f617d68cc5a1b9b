"""A model and prompts as one function v(x; σ) under classifier-free guidance (N §5; S §2.5, §2.6)."""

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from refimpl.data.crop import SizeInts
from refimpl.diffusion.preconditioner import alpha_sigma
from refimpl.diffusion.v_prediction import v_from_output
from refimpl.errors import InputError
from refimpl.model.attention_options import AttentionOptions, using_attention
from refimpl.model.pipeline import Model
from refimpl.sample.config import SampleConfig
from refimpl.sample.grids import terminal_level
from refimpl.sample.guidance import cfg, rescale
from refimpl.sample.stepping import PredictV
from refimpl.text.conditioning import encode_prompts, vector_conditioning
from refimpl.text.image_tower import embed_images


def guided_network(
    model: Model,
    prompts: Sequence[str],
    size: SizeInts,
    config: SampleConfig,
    image_prompt: Tensor | None = None,
) -> PredictV:
    """The network under classifier-free guidance, one row per prompt.

    At a finite `config.terminal` the network is given the schedule's last timestep, as it is at ∞ (N App. A.2).
    image_prompt  [3, H, W] in −1 … 1, whose embedding replaces every prompt's pooled state (S §2.6)
    returns       predict_v(x [B, C, h, w] in VP form, sigma_edm scalar) → v [B, C, h, w]
    Raises InputError when an image prompt is given to a model without an image tower.
    """
    schedule, parameterisation = model.schedule, model.parameterisation
    device, count = next(model.unet.parameters()).device, len(prompts)
    cell, end = model.vae.config.factor, terminal_level(config.terminal)
    attention = AttentionOptions(-(-config.attention_train_side // cell), -(-config.attention_window // cell))
    sizes = torch.tensor([size] * count, device=device)
    context, pooled = encode_prompts(
        prompts, model.tokenizer, model.encoder_l, model.encoder_g, pooling=model.text.pooling
    )
    if image_prompt is not None:
        pooled = _image_embedding(model, image_prompt.to(device)).expand(count, -1).to(pooled)
    null_context, null_pooled = model.null_condition()
    conditions = [
        (context, vector_conditioning(pooled, sizes, _scores(model, config.aesthetic_score, sizes)))
    ]
    if config.guidance != 1:
        null_context = null_context.repeat(count, context.shape[1] // null_context.shape[1], 1)
        scores = _scores(model, config.negative_aesthetic_score, sizes)
        conditions.append((null_context, vector_conditioning(null_pooled.expand(count, -1), sizes, scores)))

    def predict_v(x: Tensor, sigma_edm: Tensor) -> Tensor:
        level = torch.where(sigma_edm >= end, math.inf, sigma_edm)
        t = schedule.sigma_edm_to_t(level).to(device).expand(count)
        alpha, sigma = alpha_sigma(sigma_edm)
        with using_attention(model.unet, attention) if attention != AttentionOptions() else nullcontext():
            outputs = [model.unet(x, t, *condition) for condition in conditions]
        v = [v_from_output(output, x, alpha, sigma, parameterisation) for output in outputs]
        if len(v) == 1:
            return v[0]
        return rescale(cfg(v[0], v[1], config.guidance), v[0], config.rescale)

    return predict_v


def _scores(model: Model, score: float, sizes: Tensor) -> Tensor | None:
    """Aesthetic scores [B] for a network that is conditioned on them, else None."""
    if model.text.vector != "score":
        return None
    return torch.full((len(sizes),), score, dtype=torch.float32, device=sizes.device)


def _image_embedding(model: Model, image: Tensor) -> Tensor:
    if model.image_tower is None:
        raise InputError(
            "this model takes no image prompt: it was trained without an image tower (image_prompt.folder); leave "
            "the image out, or use a run of the image_prompt preset"
        )
    return embed_images(model.image_tower, image[None])
