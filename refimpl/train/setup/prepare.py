"""Everything before the first step: data set, autoencoder, scale-and-shift, text towers, UNet."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from refimpl.cache.cached_stage import (
    cached_text,
    check_cache,
    find_latents,
    open_cache,
    without_quarantined,
)
from refimpl.cache.latents import LatentCache
from refimpl.cache.text_states import CachedTextStates
from refimpl.data.buckets import assign_and_prune
from refimpl.data.demo.data_set import write_demo_images
from refimpl.data.images.fast_jpeg import check_fast
from refimpl.data.index.data_set import read_source
from refimpl.data.loading.loader import ImageCache
from refimpl.data.scores import take_scores
from refimpl.data.tags import TagCounts, count_tags, dataset_weights
from refimpl.diffusion.philox import sample_id
from refimpl.errors import InputError
from refimpl.interop.any_checkpoint import Opened
from refimpl.interop.run.run_folder import (
    CONFIG,
    Model,
    committed_steps,
    load_base,
    load_components,
    save_components,
    write_config,
)
from refimpl.model.unet import UNet
from refimpl.ops import load_ops
from refimpl.run.config import Config, Stage
from refimpl.run.data_digest import check_same_data
from refimpl.run.world import World
from refimpl.tables import to_table
from refimpl.text.image_tower import load_image_tower
from refimpl.text.states import TextStates
from refimpl.train.log import check_loggers
from refimpl.train.setup.frozen_parts import frozen_parts
from refimpl.train.setup.init_from import fill_unet, open_start, say_start, start_towers
from refimpl.train.setup.trainable import Part, check_targets, make_trainable
from refimpl.train.step_plan import StageData, plan_stage


@dataclass(frozen=True)
class Prepared:
    """What the loop works with."""

    model: Model
    parts: list[Part]
    text_states: TextStates | CachedTextStates
    stages: list[StageData]
    heldout: StageData | None


def prepare(config: Config, run: Path, world: World) -> Prepared:
    """Reads the data, gets or makes the frozen parts, builds the UNet; rank 0 makes what the others then read.

    Raises InputError, before anything is written to the run folder, for settings that this machine or these images
    cannot fulfil. A run that fails here leaves the folder as it was.
    """
    load_ops(config.train.backend)
    check_loggers(config)
    if config.data.decoder == "fast":
        check_fast()
    check_targets(config)
    world.on_main(lambda: prepare_data(config))
    cache = open_cache(config)
    stages = [read_stage(config, stage, cache, world) for stage in config.all_stages()]
    heldout = read_stage(config, _heldout_stage(config)) if config.data.heldout else None
    for data in stages:
        plan_stage(config, data, 0, world)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)  # initial weights; nothing else draws from the global generator
        unet = UNet(config.unet, config.train.activation_checkpointing)
    start = None if committed_steps(run) else open_start(config)
    if start is not None:
        fill_unet(unet, start, config)
        if world.is_main:
            say_start(start, config)
    world.on_main(lambda: _write_frozen_parts(config, run, stages, unet, start, world.device, cache))
    world.on_main(lambda: check_same_data(run, stages, config.train.accept_data))
    if config.lora.rank:
        load_base(run, unet)
    model = load_components(run, unet, config.vae, config.text, config.diffusion).to(world.device)
    parts = make_trainable(model, config)
    towers = (model.tokenizer, model.encoder_l, model.encoder_g)
    states = TextStates(towers, config.text.pooling, config.text.cached_prompts, config.text.is_trained)
    if cache is not None:
        world.on_main(lambda: check_cache(config, cache, stages, model.vae, towers))
    return Prepared(model, parts, cached_text(config, states, world), stages, heldout)


def _write_frozen_parts(
    config: Config,
    run: Path,
    stages: list[StageData],
    unet: UNet,
    start: Opened | None,
    device: torch.device,
    cache: LatentCache | None,
) -> None:
    """Commits the settings and the components of a run that has none; both, or neither."""
    if (run / "components").exists():
        return
    towers = start_towers(start, config)  # fails at once, the autoencoder may take hours
    image_folder = config.image_prompt.folder
    image_tower = load_image_tower(image_folder, config.text.pooled_dim) if image_folder else None
    vae, scale_shift, _ = frozen_parts(config, stages[-1], device, start)
    if cache is not None:
        check_cache(config, cache, stages, vae, towers)
    model = Model(unet, vae, scale_shift, *towers, config.text, config.diffusion, image_tower)
    is_new = not (run / CONFIG).exists()
    if is_new:
        write_config(run, to_table(config))
    try:
        save_components(run, model, with_unet=config.lora.rank > 0)
    except InputError:
        if is_new:
            (run / CONFIG).unlink()
        raise


def prepare_data(config: Config) -> None:
    """Draws the demonstration data set where `data.demo` asks for it and the folder is not there."""
    folder = Path(config.data.folder)
    if config.data.demo and not folder.exists():
        bar = tqdm(desc="demo images", unit="image", dynamic_ncols=True)

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        write_demo_images(folder.parent, progress=progress)
        bar.close()


def read_stage(
    config: Config, stage: Stage, cache: LatentCache | None = None, world: World | None = None
) -> StageData:
    """Indexes a stage's folder, assigns its images to the stage's buckets and weighs them by their tags.

    cache  its latents take the place of the images, which must fit them; given with the world
    """
    if not stage.folder:
        raise InputError("data.folder is empty; name a folder of images with .txt or .caption sidecars")
    use_scores = config.text.vector == "score"
    classes = (*config.data.tag_classes, *([config.data.score_class] if use_scores else []))
    index = read_source(stage.folder, classes)
    for bad in index.quarantined:
        tqdm.write(f"left out: {bad}")
    index = without_quarantined(cache, index)
    buckets = stage.buckets.sizes()
    limit = config.data.max_aspect_error or math.inf
    assigned = assign_and_prune(index.widths, index.heights, buckets, config.data.aspect_metric, limit)
    for item in np.flatnonzero(assigned.pruned):
        size = f"{index.widths[item]}×{index.heights[item]}"
        tqdm.write(
            f"pruned {index.paths[int(item)]}: {size} is {assigned.error[item]:.3f} from the nearest bucket"
        )
    kept = np.flatnonzero(~assigned.pruned)
    index, bucket_of = index.take(kept), assigned.index[kept]
    scores = None
    if use_scores:
        index, values = take_scores(index, config.data.score_class, config.data.default_score)
        scores = torch.from_numpy(values)
    weights = np.ones(len(index))
    if config.tag_weights.enabled:
        settings = config.tag_weights
        counts = count_tags(index.tags, TagCounts(settings.beta, settings.least, settings.most))
        weights = dataset_weights(index.tags, counts)
    draw_ids = torch.tensor([sample_id(name) for name in index.ids], dtype=torch.int64)
    weight_table = torch.tensor(weights, dtype=torch.float32)
    images = ImageCache(config.data.cache_megabytes * 2**20) if config.data.cache_megabytes else None
    data = StageData(stage, index, buckets, bucket_of, draw_ids, weight_table, scores, images)
    if cache is None or world is None:
        return data
    return replace(data, latents=find_latents(cache, data, config.data.cache, world))


def _heldout_stage(config: Config) -> Stage:
    return replace(config.all_stages()[-1], folder=config.data.heldout)
