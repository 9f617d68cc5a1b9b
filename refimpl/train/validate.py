"""What a run measures of itself: held-out v-loss at fixed noise and timesteps, and grids of fixed prompts."""

from pathlib import Path

import torch

from refimpl.autoencoder.training import bucket_batches
from refimpl.data.loading.loader import load_batches
from refimpl.diffusion.philox import Purpose, draw_key
from refimpl.diffusion.v_prediction import v_from_output
from refimpl.ops import load_ops
from refimpl.run.config import Config
from refimpl.run.visit_draws import CentreDraws
from refimpl.sample.images.draw import draw_images
from refimpl.sample.images.picture_files import write_grid
from refimpl.text.conditioning import vector_conditioning
from refimpl.text.image_tower import embed_images
from refimpl.train.setup.prepare import Prepared
from refimpl.train.setup.trainable import Averages, averaged
from refimpl.train.step_plan import StageData

TIMESTEPS = (49, 149, 249, 349, 449, 549, 649, 749, 849, 949)  # the middles of ten equal parts
MEASURING_SEED = 0x6865_6C64  # apart from every training seed's noise: held-out ids are not trained on anyway
BATCH = 64


def heldout_loss(config: Config, prepared: Prepared, averages: Averages) -> float | None:
    """Mean unweighted v-loss over the held-out images, each at ten fixed timesteps with fixed noise.

    averages  weights to measure in the place of the trained ones
    returns   None when the configuration has no held-out folder
    Crops are central and captions are never dropped, so two calls differ by the weights alone.
    """
    if prepared.heldout is None:
        return None
    with averaged(prepared.parts, averages):
        return _heldout_loss(config, prepared, prepared.heldout)


@torch.no_grad()
def _heldout_loss(config: Config, prepared: Prepared, data: StageData) -> float:
    model = prepared.model
    device = next(model.unet.parameters()).device
    ops, schedule = load_ops(config.train.backend), config.diffusion.schedule()
    low, high = config.diffusion.first_timestep, config.diffusion.last_timestep
    timesteps = [t for t in TIMESTEPS if low <= t <= high] or [(low + high) // 2]
    losses = []
    plan = bucket_batches(data.buckets, data.bucket_of, max(1, BATCH // len(timesteps)))
    for batch in load_batches(data.index, list(plan), 0, CentreDraws()):
        repeats = len(timesteps)
        images, items = batch.images.to(device).float() / 127.5 - 1, torch.as_tensor(batch.items)
        latents = model.scale_shift.standardise(model.vae.encode(images))
        context, pooled = prepared.text_states([data.index.captions[item] for item in batch.items])
        if model.image_tower is not None:  # S §2.6
            pooled = embed_images(model.image_tower, images)
        scores = None if data.scores is None else data.scores[items].to(device)
        vector = vector_conditioning(pooled, batch.size_ints.to(device), scores)
        ids = data.draw_ids[items].to(device).repeat_interleave(repeats)
        t = torch.tensor(timesteps, device=device).repeat(len(batch.items))
        x0, context, vector = (x.repeat_interleave(repeats, dim=0) for x in (latents, context, vector))
        alpha, sigma = schedule.at(t)
        key = draw_key(MEASURING_SEED, ids, t, Purpose.NOISE)
        x_t = ops.add_keyed_noise(x0, key, alpha, sigma)
        output = model.unet(x_t, t, context, vector)
        v = v_from_output(output, x_t, alpha, sigma, config.diffusion.parameterisation)
        losses.append(ops.keyed_v_loss(v, x0, key, alpha, sigma, torch.ones(len(t), device=device)).cpu())
    return float(torch.cat(losses).double().mean())


def draw_samples(config: Config, prepared: Prepared, averages: Averages, path: Path) -> None:
    """Draws the fixed prompts as one picture: a row per prompt, a column per seed."""
    with averaged(prepared.parts, averages):
        write_grid(draw_images(prepared.model, config.sample), path)
