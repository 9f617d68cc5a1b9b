"""A micro-batch with its captions and all random draws, each a function of (seed, image id, visit) (N §4.1, §4.3)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refimpl.cache.latents import LatentBatch
from refimpl.data.captions import drop_tags, shuffle_tags
from refimpl.data.config import DataConfig
from refimpl.data.index.data_set import Index
from refimpl.data.loading.loader import Batch
from refimpl.diffusion.schedule import NoiseSchedule
from refimpl.model.lora.dropout import RankDropout
from refimpl.run.config import Config
from refimpl.run.stage import StageData
from refimpl.run.visit_draws import VisitDraws
from refimpl.text.conditioning import size_features
from refimpl.train.step import step_draws


@dataclass(frozen=True)
class MicroBatch:
    """The data of one forward pass."""

    images: Tensor  # [B, 3, H, W] uint8; empty where there are latents
    latents: Tensor | None  # [B, C, h, w] from a cache, unscaled, in the dtype they are stored in
    size_ints: Tensor  # [B, 6] int64
    captions: list[str]
    scores: Tensor | None  # [B] float32
    features: Tensor  # [B, F] float32, of sizes, crop and scores
    t: Tensor  # [B] int64
    alpha: Tensor  # [B] float64, at t
    sigma: Tensor  # [B] float64, at t
    weight: Tensor  # [B] float32, of the loss: that of t times that of the tags
    is_dropped: Tensor  # [B] bool, whether the caption is replaced by the null condition
    noise: Tensor  # [B, 2] int64, keys of the noise
    kept: Tensor | None  # [B, R] float32, masks of the adapters' rank
    is_repeat: bool = (
        False  # whether another micro-batch is run again only to keep this rank in step; it counts nowhere
    )


@dataclass(frozen=True)
class BatchDraws:
    """What the draws of all batches have in common."""

    seed: int
    timesteps: tuple[int, int]  # the first and the last that can be drawn
    caption_dropout: float
    schedule: NoiseSchedule
    weights: Tensor  # [T] float64, of the loss
    dropout: RankDropout | None  # None where no adapter has any


def batch_draws(config: Config, dropout: RankDropout | None) -> BatchDraws:
    """What the settings and the adapters say of every batch's draws."""
    diffusion, training = config.diffusion, config.train
    return BatchDraws(
        seed=training.seed,
        timesteps=(diffusion.first_timestep, diffusion.last_timestep),
        caption_dropout=training.caption_dropout,
        schedule=diffusion.schedule(),
        weights=diffusion.loss_weights(),
        dropout=dropout if dropout and dropout.layers else None,
    )


def make_micro_batch(
    settings: DataConfig, data: StageData, batch: Batch, draws: VisitDraws, epoch: int, drawn: BatchDraws
) -> MicroBatch:
    """A loaded batch with the captions and the draws of this visit.

    epoch  also the number of times that its images were visited before
    """
    items = torch.as_tensor(batch.items)
    planned = torch.as_tensor(batch.planned)  # a bad image's replacement gets the noise of the bad one
    captions = [_caption(settings, data.index, int(item), draws, epoch) for item in batch.items]
    ids, tag_weights = data.draw_ids[planned], data.tag_weights[items]
    scores = None if data.scores is None else data.scores[items]
    own = step_draws(drawn.seed, ids, epoch, drawn.timesteps, drawn.caption_dropout)
    alpha, sigma = drawn.schedule.at(own.t)
    return MicroBatch(
        images=batch.images,
        latents=batch.latents if isinstance(batch, LatentBatch) else None,
        size_ints=batch.size_ints,
        captions=captions,
        scores=scores,
        features=size_features(batch.size_ints, scores),
        t=own.t,
        alpha=alpha,
        sigma=sigma,
        weight=(drawn.weights[own.t] * tag_weights).float(),
        is_dropped=own.is_dropped,
        noise=own.noise,
        kept=None if drawn.dropout is None else drawn.dropout.draw(own.lora_dropout),
    )


def repeat_of(batch: MicroBatch) -> MicroBatch:
    """The batch with weight 0: of its shapes, but without a part in the loss, its gradient or any figure."""
    return replace(batch, weight=torch.zeros_like(batch.weight), is_repeat=True)


def _caption(settings: DataConfig, index: Index, item: int, draws: VisitDraws, epoch: int) -> str:
    """An image's caption as this visit sees it: without the tags that are dropped, the others shuffled."""
    caption, first = index.captions[item], settings.keep_first_tags
    rates = settings.tag_dropout_rates()
    if rates:
        source = draws.tag_dropout_source(index.ids[item], epoch)
        caption = drop_tags(caption, index.tags[item], rates, source, first)
    if settings.shuffle_tags:
        caption = shuffle_tags(caption, draws.tag_source(index.ids[item], epoch), first)
    return caption
