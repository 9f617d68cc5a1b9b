"""The endless list of optimizer steps: which images, in which order, for which rank (N §4.1.2)."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from refimpl.cache.latents import CachedLatents, LatentBatch, read_batches
from refimpl.data.captions import drop_tags, shuffle_tags
from refimpl.data.config import DataConfig, Mode
from refimpl.data.index.data_set import Index
from refimpl.data.loading.loader import Batch, Batches, Draws, SameBucket, load_batches
from refimpl.data.plan import Plan, plan_epoch
from refimpl.diffusion.schedule import NoiseSchedule
from refimpl.model.lora.dropout import RankDropout
from refimpl.run.config import Config, Stage, TrainConfig
from refimpl.run.stage import StageData, rank_batch
from refimpl.run.visit_draws import VisitDraws
from refimpl.run.world import World
from refimpl.text.conditioning import size_features
from refimpl.train.quarantine import Quarantine
from refimpl.train.step import step_draws


@dataclass(frozen=True)
class MicroBatch:
    """The data of one forward pass."""

    images: Tensor  # [B, 3, H, W] uint8; empty where there are latents
    latents: Tensor | None  # [B, C, h, w] from a cache, unscaled, in the dtype they are stored in
    size_ints: Tensor  # [B, 6] int64
    captions: list[str]
    draw_ids: Tensor  # [B] int64
    tag_weights: Tensor  # [B] float32
    scores: Tensor | None  # [B] float32
    features: Tensor  # [B, F] float32, of sizes, crop and scores
    t: Tensor  # [B] int64
    alpha: Tensor  # [B] float64, at t
    sigma: Tensor  # [B] float64, at t
    weight: Tensor  # [B] float32, of the loss: that of t times that of the tags
    is_dropped: Tensor  # [B] bool, whether the caption is replaced by the null condition
    noise: Tensor  # [B, 2] int64, keys of the noise
    kept: Tensor | None  # [B, R] float32, masks of the adapters' rank


@dataclass(frozen=True)
class BatchDraws:
    """What the draws of all batches have in common."""

    seed: int
    timesteps: tuple[int, int]  # the first and the last that can be drawn
    caption_dropout: float
    schedule: NoiseSchedule
    weights: Tensor  # [T] float64, of the loss
    dropout: RankDropout | None  # None where no adapter has any


@dataclass(frozen=True)
class PlanStep:
    """One optimizer step of this rank."""

    stage: Stage
    epoch: int  # also the visit number of its images
    bucket: tuple[int, int]
    images: int  # of all ranks in this step
    images_per_step: float  # mean of `images` over the epoch, by which the summed loss is divided
    names: list[str]  # ids of this rank's images
    batches: list[MicroBatch]
    waited: float  # seconds that this rank waited for the images of the step


def plan_steps(
    config: Config,
    stages: Sequence[StageData],
    start: int,
    world: World,
    quarantine: Quarantine,
    latents: Sequence[CachedLatents | None] = (),
    dropout: RankDropout | None = None,
) -> Iterator[PlanStep]:
    """The optimizer steps from number `start` on, up to `train.steps`.

    The position is a function of the step number: earlier epochs are planned again and skipped, so a resumed run
    sees the batches that an uninterrupted one would have seen.
    latents  for each stage, the cached latents to train on instead of its images; images when left out
    dropout  of the adapters, whose masks are drawn with the rest
    An image that turns out bad is noted in `quarantine`, and another image from its bucket replaces it.
    Raises InputError when a stage has fewer images than one global batch, or too many of them are bad.
    """
    draws = batch_draws(config, dropout)
    step, epoch = 0, 0
    for number, (data, cached) in enumerate(zip(stages, latents or [None] * len(stages), strict=True)):
        is_last = number + 1 == len(stages)
        end = config.train.steps if is_last else min(config.train.steps, stages[number + 1].stage.from_step)
        while step < end:
            plan = plan_stage(config.data, config.train, data, epoch, world)
            taken = min(len(plan), end - step)
            first = max(0, start - step)
            if first < taken:
                yield from _epoch_steps(
                    config.data,
                    config.train,
                    data,
                    cached,
                    plan,
                    epoch,
                    range(first, taken),
                    world,
                    quarantine,
                    draws,
                )
            step += taken
            epoch += 1


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


def plan_stage(
    settings: DataConfig, training: TrainConfig, data: StageData, epoch: int, world: World
) -> Plan:
    """Plans one epoch of a stage. Raises InputError when the stage has fewer images than one global batch."""
    aspects = data.index.widths / data.index.heights
    bucket_aspects = np.array([width / height for width, height in data.buckets])
    return plan_epoch(
        data.bucket_of,
        rank_batch(training, data.stage, data.buckets),
        training.seed,
        epoch,
        world_size=world.size,
        mode=settings.plan,
        aspects=aspects,
        bucket_aspects=bucket_aspects,
    )


def _epoch_steps(
    settings: DataConfig,
    training: TrainConfig,
    data: StageData,
    cached: CachedLatents | None,
    plan: Plan,
    epoch: int,
    numbers: range,
    world: World,
    quarantine: Quarantine,
    drawn: BatchDraws,
) -> Iterator[PlanStep]:
    accumulate = training.accumulate
    steps = [_rank_share(plan, step, settings.plan, accumulate, world) for step in numbers]
    batches = [(data.buckets[bucket], micro) for bucket, share in steps for micro in share]
    draws = VisitDraws(training.seed, settings.horizontal_flip)
    load = partial(_load, settings, data, epoch, world.device.type == "cuda")
    loaded = read_batches(cached, data.index, batches, epoch, draws, load) if cached else load(batches, draws)
    images_per_step = (len(data.index) - len(plan.dropped)) / len(plan)
    for bucket, share in steps:
        started = time.perf_counter()
        ready = [next(loaded) for _ in range(accumulate)]
        waited = time.perf_counter() - started
        for batch in ready:
            quarantine.add(batch.bad, len(data.index))
        yield PlanStep(
            stage=data.stage,
            epoch=epoch,
            bucket=data.buckets[bucket],
            images=sum(len(micro) for micro in share) * world.size,
            images_per_step=images_per_step,
            names=[data.index.ids[int(item)] for micro in share for item in micro],
            batches=[_micro_batch(settings, data, batch, draws, epoch, drawn) for batch in ready],
            waited=waited,
        )


def _load(
    settings: DataConfig, data: StageData, epoch: int, pinned: bool, batches: Batches, draws: Draws
) -> Iterator[Batch]:
    return load_batches(
        data.index,
        batches,
        epoch,
        draws,
        workers=settings.workers,
        cache=None if settings.workers else data.cache,
        substitutes=SameBucket(data.bucket_of),
        decoder=settings.decoder,
        pinned=pinned,
        timeout=settings.worker_timeout,
    )


def _rank_share(
    plan: Plan, step: int, mode: Mode, accumulate: int, world: World
) -> tuple[int, list[np.ndarray]]:
    """Bucket and micro-batches of this rank: those numbered k·world + rank in a global batch, k = 0, 1, …"""
    if mode == "paper":
        bucket, items = plan.batch(step, world.rank)
        return bucket, np.split(np.asarray(items), accumulate)
    bucket, items = plan.global_batch(step)
    parts = np.split(np.asarray(items), accumulate * world.size)
    return bucket, [parts[k * world.size + world.rank] for k in range(accumulate)]


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


def _micro_batch(
    settings: DataConfig, data: StageData, batch: Batch, draws: VisitDraws, epoch: int, drawn: BatchDraws
) -> MicroBatch:
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
        draw_ids=ids,
        tag_weights=tag_weights,
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
