"""Everything before the first step: data set, autoencoder, scale-and-shift, text towers, UNet."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from refimpl.cache.cached_stage import (
    cached_text,
    check_cache,
    find_latents,
    open_cache,
)
from refimpl.cache.latents import CachedLatents, LatentCache
from refimpl.cache.text_states import CachedTextStates
from refimpl.cache.verified import verify_latents, verify_text
from refimpl.data.images.fast_jpeg import check_fast
from refimpl.errors import InputError
from refimpl.interop.any_checkpoint import Opened
from refimpl.interop.run.base import BASE, load_base, refer_to_base
from refimpl.interop.run.checkpoints import committed_steps
from refimpl.interop.run.run_folder import (
    CONFIG,
    load_components,
    save_components,
    write_config,
)
from refimpl.model.pipeline import Model
from refimpl.model.unet import UNet
from refimpl.ops import load_ops
from refimpl.run.config import Config
from refimpl.run.data_digest import check_same_data
from refimpl.run.shared_work import peers_of
from refimpl.run.stage import StageData, read_stage, write_demo_data
from refimpl.run.world import World
from refimpl.tables import to_table
from refimpl.text.cleaning import check_cleaning
from refimpl.text.image_tower import load_image_tower
from refimpl.text.states import TextStates
from refimpl.train.metrics.loggers import check_loggers
from refimpl.train.optimizer.kinds import check_library
from refimpl.train.placement import check_placement, place, set_weight_dtype
from refimpl.train.setup.frozen_parts import frozen_parts
from refimpl.train.setup.init_from import fill_unet, open_start, say_start, start_towers
from refimpl.train.setup.resumed import record_settings
from refimpl.train.setup.trainable import Part, check_targets, make_trainable
from refimpl.train.sharding.kinds import Sharding, divide
from refimpl.train.sharding.mesh import check_sharding
from refimpl.train.step_plan import stage_steps


@dataclass(frozen=True)
class Prepared:
    """Everything that the loop works with."""

    model: Model
    parts: list[Part]
    text_states: TextStates | CachedTextStates
    stages: list[StageData]
    latents: list[CachedLatents | None]  # for each stage, what is trained on instead of its images
    heldout: StageData | None
    sharding: Sharding


def prepare(config: Config, run: Path, world: World) -> Prepared:
    """Reads the data, reads or makes the frozen parts, builds the UNet; rank 0 makes what the others then read.

    Raises InputError, before anything is written to the run folder, for settings that this machine or these images
    cannot satisfy. A cache is read whole only after the frozen parts are written: a run that a damaged shard ends has
    its folder, and goes on with train.resume once the cache is mended.
    """
    ops = load_ops(config.train.backend)
    check_sharding(config.train, world.size)
    check_placement(config, world.device)
    check_loggers(config.train)
    check_library(config.optimizer)
    if config.data.decoder == "fast":
        check_fast()
    check_cleaning(config.text.clean)
    check_targets(config)
    world.on_main(lambda: write_demo_data(config.data))
    cache = open_cache(config.data, config.image_prompt)
    quarantined = None if cache is None else cache.quarantined
    stages = [read_stage(config, stage, quarantined, world.is_main) for stage in config.all_stages()]
    latents = [
        None if cache is None else find_latents(cache, data, config.data.cache, world) for data in stages
    ]
    last = replace(config.all_stages()[-1], folder=config.data.heldout)
    heldout = read_stage(config, last, is_told=world.is_main) if config.data.heldout else None
    for data in stages:
        stage_steps(config.data, config.train, data, world)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)  # initial weights; nothing else draws from the global generator
        unet = UNet(config.unet, config.train.activation_checkpointing)
    start = None if committed_steps(run) else open_start(config.train.init_from)
    if start is not None:
        fill_unet(unet, start, config.train.init_from)
        if world.is_main:
            say_start(start, config.diffusion, config.train.init_from)
    world.on_main(lambda: _write_frozen_parts(config, run, stages, unet, start, world.device, cache))
    check_same_data(run, stages, config.train.accept_data, config.data.digest, world)
    world.on_main(lambda: record_settings(config, run))
    if config.lora.rank:
        load_base(run, unet)
    set_weight_dtype(unet, config.train)
    peers = peers_of(world)
    model = load_components(run, unet, config.vae, config.text, config.diffusion, peers).to(world.device)
    model.unet.set_ops(ops)
    parts = make_trainable(model, config)
    towers = (model.tokenizer, model.encoder_l, model.encoder_g)
    states = TextStates(towers, config.text.pooling, config.text.cached_prompts, config.text.is_trained)
    if cache is not None:
        world.on_main(lambda: check_cache(config.data, config.text, cache, stages, model.vae, towers))
    place(model, config, world.device)
    read = cached_text(config.data, config.text, states, world)
    if config.data.verify_cache:
        verify_latents(latents, world)
        verify_text(read, [data.index.captions for data in stages], world)
    sharding = divide(model.unet, parts, config.train, world)
    return Prepared(model, parts, read, stages, latents, heldout, sharding)


def _write_frozen_parts(
    config: Config,
    run: Path,
    stages: list[StageData],
    unet: UNet,
    start: Opened | None,
    device: torch.device,
    cache: LatentCache | None,
) -> None:
    """Commits the settings and the components of a run that has no components yet: both, or neither."""
    if (run / "components").exists():
        return
    towers = start_towers(
        start, config.text, config.train.init_from
    )  # first, so that it fails at once: the autoencoder may take hours
    image_folder = config.image_prompt.folder
    image_tower = load_image_tower(image_folder, config.text.pooled_dim) if image_folder else None
    vae, scale_shift, _ = frozen_parts(config, stages[-1], device, start)
    if cache is not None:
        check_cache(config.data, config.text, cache, stages, vae, towers)
    model = Model(unet, vae, scale_shift, *towers, config.text, config.diffusion, image_tower)
    is_new = not (run / CONFIG).exists()
    if is_new:
        write_config(run, to_table(config))
    try:
        if start is not None and config.lora.rank and not config.lora.copy_base:
            refer_to_base(run, start.path, unet)
        save_components(run, model, with_unet=config.lora.copy_base)
    except InputError:
        (run / BASE).unlink(missing_ok=True)
        if is_new:
            (run / CONFIG).unlink()
        raise
