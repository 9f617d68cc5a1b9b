"""How a run measures itself: held-out v-loss at fixed noise and timesteps, and grids of fixed prompts."""

import torch
from torch import Tensor

from refimpl.autoencoder.training import bucket_batches
from refimpl.data.loading.loader import load_batches
from refimpl.data.loading.transfer import onto
from refimpl.diffusion.config import DiffusionConfig
from refimpl.diffusion.philox import Purpose, draw_key
from refimpl.ops import load_ops
from refimpl.run.stage import StageData
from refimpl.run.visit_draws import CentreDraws
from refimpl.sample.config import SampleConfig
from refimpl.sample.images.draw import draw_images
from refimpl.text.conditioning import size_features
from refimpl.train.setup.prepare import Prepared
from refimpl.train.setup.trainable import Averages, averaged
from refimpl.train.step import denoising_loss, encode_latents, make_conditions

TIMESTEPS = (49, 149, 249, 349, 449, 549, 649, 749, 849, 949)  # midpoints of ten equal intervals
MEASURING_SEED = 0x6865_6C64  # unlike the seeds used for training; held-out ids are not trained on anyway
BATCH = 64
DRAWN_AT_ONCE, DRAWN_PIXELS = (
    16,
    2**20,
)  # samples drawn together, and pixels of these; one image may have more


def heldout_loss(prepared: Prepared, averages: Averages, backend: str) -> float | None:
    """Mean unweighted v-loss over the held-out images, each at the `measured_timesteps` with fixed noise.

    Every rank calls it; where the weights are divided, all ranks measure together.
    averages  weights to measure in place of the trained ones    backend  implementation of refimpl.ops
    returns   None when the configuration has no held-out folder, and on a rank that takes no part
    Crops are central and captions are never dropped, so two calls differ only in the weights.
    """
    if prepared.heldout is None or not prepared.sharding.measures:
        return None
    timesteps = measured_timesteps(prepared.model.diffusion)
    with averaged(prepared.parts, averages, prepared.sharding):
        return _heldout_loss(prepared, prepared.heldout, timesteps, backend)


def measured_timesteps(diffusion: DiffusionConfig) -> list[int]:
    """Those of the ten timesteps that are trained (two for a refiner); the middle of the trained ones if none is."""
    low, high = diffusion.first_timestep, diffusion.last_timestep
    return [t for t in TIMESTEPS if low <= t <= high] or [(low + high) // 2]


@torch.no_grad()
def _heldout_loss(prepared: Prepared, data: StageData, timesteps: list[int], backend: str) -> float:
    model, ops, repeats = prepared.model, load_ops(backend), len(timesteps)
    device = next(model.unet.parameters()).device
    losses = []
    plan = bucket_batches(data.buckets, data.bucket_of, max(1, BATCH // repeats))
    for batch in load_batches(data.index, list(plan), 0, CentreDraws()):
        pixels, items = onto(device, batch.images), torch.as_tensor(batch.items)
        captions = [data.index.captions[int(item)] for item in batch.items]
        scores = None if data.scores is None else data.scores[items]
        features = onto(device, size_features(batch.size_ints, scores))
        latents = encode_latents(model, pixels).repeat_interleave(repeats, dim=0)
        conditions = make_conditions(
            model, prepared.text_states, captions, pixels, batch.size_ints, scores, features=features
        )
        ids = data.draw_ids[items].repeat_interleave(repeats)
        t = torch.tensor(timesteps).repeat(len(items))
        key = draw_key(MEASURING_SEED, ids, t, Purpose.NOISE)
        alpha, sigma = model.schedule.at(t)
        losses.append(
            denoising_loss(
                model.unet,
                model,
                conditions.repeated(repeats),
                latents,
                onto(device, key),
                onto(device, t),
                torch.ones(len(t), device=device),
                0.0,
                ops,
                levels=(onto(device, alpha), onto(device, sigma)),
            )
        )
    return float(torch.cat(losses).cpu().double().mean())


def drawn_at_once(settings: SampleConfig) -> int:
    """How many samples are drawn together: what a run needs for them is no more than for one large image."""
    return max(1, min(DRAWN_AT_ONCE, DRAWN_PIXELS // (settings.width * settings.height)))


def draw_samples(prepared: Prepared, averages: Averages, settings: SampleConfig) -> Tensor | None:
    """The images of the fixed prompts, [prompts, seeds, 3, H, W] in 0 … 1; None on a rank that takes no part.

    Every rank calls it, as `heldout_loss`. A refiner, which never learns pure noise, begins at the noisiest level
    that it is trained on, from the mean of all images.
    """
    if not prepared.sharding.measures:
        return None
    diffusion, schedule = prepared.model.diffusion, prepared.model.schedule
    is_whole = diffusion.last_timestep == schedule.timesteps - 1
    start = None if is_whole else float(schedule.t_to_sigma_edm(diffusion.last_timestep))
    with averaged(prepared.parts, averages, prepared.sharding):
        return draw_images(prepared.model, settings, start, drawn_at_once(settings))
