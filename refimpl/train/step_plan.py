"""The endless list of optimizer steps: which images, in which order, for which rank (N §4.1.2)."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from refimpl.cache.latents import CachedLatents, read_batches
from refimpl.data.config import DataConfig
from refimpl.data.loading.loader import Batch, Batches, Draws, SameBucket, load_batches
from refimpl.data.plan import Plan, count_steps, plan_epoch
from refimpl.errors import InputError
from refimpl.model.lora.dropout import RankDropout
from refimpl.run.config import Config, Stage, TrainConfig
from refimpl.run.stage import StageData, micro_batch_images
from refimpl.run.visit_draws import VisitDraws
from refimpl.run.world import World
from refimpl.train.batches.micro_batch import BatchDraws, MicroBatch, batch_draws, make_micro_batch, repeat_of
from refimpl.train.batches.shares import check_ranks_of_paper_plan, micro_batches, share_of
from refimpl.train.quarantine import Quarantine


@dataclass(frozen=True)
class PlanStep:
    """One optimizer step of this rank."""

    stage: Stage
    epoch: int  # also the visit number of its images
    bucket: tuple[int, int]
    images: int  # of all ranks in this step
    images_per_step: float  # mean of `images` over the epoch, by which the summed loss is divided
    names: list[str]  # ids of this rank's images
    batches: list[MicroBatch]  # as many on every rank; those that only repeat another come last
    waited: float  # seconds that this rank waited for the images of the step
    micro_batches: int = 1  # of all ranks in this step, without repeats


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

    The position is a function of the step number: the epochs before it are counted and not planned, so a resumed run
    sees the batches that an uninterrupted one would have seen, and begins at once.
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
        of_epoch, _ = stage_steps(config.data, config.train, data, world)
        past = max(0, min(start, end) - step) // of_epoch  # whole epochs of the stage
        step, epoch = step + past * of_epoch, epoch + past
        while step < end:
            taken = min(of_epoch, end - step)
            first = max(0, start - step)
            if first < taken:
                yield from _epoch_steps(
                    config.data,
                    config.train,
                    data,
                    cached,
                    epoch,
                    range(first, taken),
                    world,
                    quarantine,
                    draws,
                )
            step += taken
            epoch += 1


def stage_steps(
    settings: DataConfig, training: TrainConfig, data: StageData, world: World
) -> tuple[int, int]:
    """Optimizer steps in every epoch of a stage and images that each leaves out, counted without planning one.

    Raises InputError when the stage has fewer images than one global batch, or when its micro-batches and the ranks
    contradict each other.
    """
    batch, ranks = _batch_and_ranks(settings, training, data, world)
    smallest, images = int(np.min(batch)), len(data.index)
    if images < smallest * ranks:
        count = micro_batches(training, world.size)
        raise InputError(
            f"{images} images are fewer than one global batch: {count} micro-batches × "
            f"{smallest * ranks // count} images = {smallest * ranks}. Add {smallest * ranks - images} images, or "
            "lower the batch size or the micro-batches"
        )
    return count_steps(data.bucket_of, batch, ranks, settings.plan, _aspects(data))


def plan_stage(
    settings: DataConfig, training: TrainConfig, data: StageData, epoch: int, world: World
) -> Plan:
    """Plans one epoch of a stage, the same for any number of ranks but in N's per-rank plan."""
    batch, ranks = _batch_and_ranks(settings, training, data, world)
    return plan_epoch(
        data.bucket_of,
        batch,
        training.seed,
        epoch,
        world_size=ranks,
        mode=settings.plan,
        aspects=data.index.widths / data.index.heights,
        bucket_aspects=_aspects(data),
    )


def _batch_and_ranks(
    settings: DataConfig, training: TrainConfig, data: StageData, world: World
) -> tuple[int | np.ndarray, int]:
    """What `plan_epoch` is to take as its batch size and world size."""
    images = micro_batch_images(training, data.stage, data.buckets)
    if settings.plan == "paper":
        check_ranks_of_paper_plan(training, world.size)
        return images * training.accumulate, world.size
    return images * micro_batches(training, world.size), 1


def _aspects(data: StageData) -> np.ndarray:
    return np.array([width / height for width, height in data.buckets])


def _epoch_steps(
    settings: DataConfig,
    training: TrainConfig,
    data: StageData,
    cached: CachedLatents | None,
    epoch: int,
    numbers: range,
    world: World,
    quarantine: Quarantine,
    drawn: BatchDraws,
) -> Iterator[PlanStep]:
    plan = plan_stage(settings, training, data, epoch, world)
    count = micro_batches(training, world.size)
    steps = [_rank_share(plan, step, count, world) for step in numbers]
    batches = [(data.buckets[bucket], micro) for bucket, share, _ in steps for micro in share]
    draws = VisitDraws(training.seed, settings.horizontal_flip)
    load = partial(_load, settings, data, epoch, world.device.type == "cuda")
    loaded = read_batches(cached, data.index, batches, epoch, draws, load) if cached else load(batches, draws)
    images_per_step = (len(data.index) - len(plan.dropped)) / len(plan)
    for bucket, share, repeats in steps:
        started = time.perf_counter()
        ready = [next(loaded) for _ in share]
        waited = time.perf_counter() - started
        for batch in ready:
            quarantine.add(batch.bad, len(data.index))
        own = [make_micro_batch(settings, data, batch, draws, epoch, drawn) for batch in ready]
        yield PlanStep(
            stage=data.stage,
            epoch=epoch,
            bucket=data.buckets[bucket],
            images=len(share[0]) * count,
            images_per_step=images_per_step,
            names=[data.index.ids[int(item)] for micro in share for item in micro],
            batches=own + [repeat_of(own[-1])] * repeats,
            waited=waited,
            micro_batches=count,
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


def _rank_share(plan: Plan, step: int, count: int, world: World) -> tuple[int, list[np.ndarray], int]:
    """Bucket, micro-batches and number of repeats of this rank in a step of `count` micro-batches."""
    if plan.mode == "paper":
        bucket, items = plan.batch(step, world.rank)
        return bucket, np.split(items, count // world.size), 0
    bucket, items = plan.global_batch(step)
    return bucket, *share_of(items, count, world.rank, world.size)
