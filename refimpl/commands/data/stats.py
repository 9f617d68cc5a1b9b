"""`refimpl stats`: a data set's scale-and-shift by Welford's streaming average (N App. B, Fig. 8)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from refimpl.checks import check_seed
from refimpl.commands.terminal import parsed
from refimpl.errors import InputError
from refimpl.latents.config import LatentConfig, VAEConfig
from refimpl.run.config import Config
from refimpl.run.presets import load_config
from refimpl.run.settings.paths import image_problems, network_problems, refuse

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from refimpl.autoencoder.latent_statistics import Measured
    from refimpl.cache.latents import CachedLatents
    from refimpl.data.loading.loader import Batch, Batches, Draws
    from refimpl.latents.vae import VAE
    from refimpl.run.stage import StageData
    from refimpl.run.world import World

WEIGHTS = "--weights"
NO_AUTOENCODER = f"no autoencoder to encode with; name its safetensors file with {WEIGHTS}"


@dataclass(frozen=True)
class StatsCommand:
    """Takes every image of a data set once, over any number of processes (torchrun), and writes the mean and std of
    each latent channel as a preset, with the number of images and how it converged (`refimpl figures --statistics`).
    """

    config: Annotated[str, tyro.conf.Positional] = ""
    """Preset or TOML file whose data, buckets and autoencoder are used; with --cache it may be left out for the one
    that the cache was made for."""
    out: Path = Path("scale_shift.json")
    """Preset to write; a configuration uses it as latents.scale_shift."""
    folder: str = ""
    """Images to measure instead of the configuration's; empty for the configuration's."""
    cache: str = ""
    """Folder written by `refimpl cache` to read latents from (crop 0) instead of encoding; it knows its images, which
    must still match it. Empty to encode."""
    weights: str = ""
    """Safetensors file of the autoencoder to use instead of the configuration's; empty for the configuration's."""
    seed: int = 0
    """Seed of the order of the images, which the convergence curve depends on."""
    device: str = "auto"
    """Device to measure on: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        check_seed("--seed", self.seed)


def stats_command(arguments: list[str], program: str = "refimpl stats") -> None:
    """Measures, prints the table of N Fig. 8 for this data set, and writes the preset."""
    command = parsed(StatsCommand, arguments, program)
    if command.out.exists():
        raise InputError(f"--out {command.out} exists; choose another name")
    if not command.config and not command.cache:
        raise InputError(
            "name a preset or a TOML file, or a cache with --cache, which knows what it was made for"
        )
    named = _of_folder(load_config(command.config), command.folder) if command.config else None
    if named is not None and not (command.cache or named.data.cache):
        check_encodable(named, command.weights)
    from refimpl.cache.made_for import config_of_cache, images_of_cache

    config = named or _of_folder(config_of_cache(command.cache), command.folder)
    if command.cache:
        config = replace(config, data=replace(config.data, cache=command.cache, horizontal_flip=False))
        config = images_of_cache(config)
    from refimpl.cache.cached_stage import find_latents, open_cache
    from refimpl.run.stage import read_stage, write_demo_data
    from refimpl.run.world import join_world, leave_world, lost_peers_named
    from refimpl.storage.atomic import replace_text

    vae = (
        None
        if config.data.cache
        else find_autoencoder(config.latents, config.vae, config.train.init_from, command.weights)
    )
    world = join_world(command.device)
    with lost_peers_named(world):
        world.on_main(lambda: write_demo_data(config.data))
        cache = open_cache(config.data, config.image_prompt)
        data = read_stage(config, config.all_stages()[-1], cache.quarantined if cache else None)
        cached = find_latents(cache, data, config.data.cache, world) if cache else None
        measured = _measured(command, config.vae.latent_channels, data, vae, cached, world)
        world.on_main(lambda: replace_text(command.out, json.dumps(measured.document()) + "\n"))
    leave_world(world)
    if world.is_main:
        count, total = measured.curve[-1][0], measured.statistics.count
        print(json.dumps({"images": count, "latent_cells": total, "out": str(command.out)}))
        table = zip(measured.scale_shift.mean, measured.scale_shift.std, strict=True)
        for channel, (mean, std) in enumerate(table):
            print(f"channel {channel}: mean {mean:9.4f}   std {std:9.4f}")


def _of_folder(config: Config, folder: str) -> Config:
    """The configuration with the images of another folder, where one is named."""
    return replace(config, data=replace(config.data, folder=folder, demo=False)) if folder else config


def _measured(
    command: StatsCommand,
    channels: int,
    data: StageData,
    vae: VAE | None,
    cached: CachedLatents | None,
    world: World,
) -> Measured:
    from refimpl.autoencoder.latent_statistics import measure_latents
    from refimpl.cache.latents import LatentBatch, read_batches
    from refimpl.data.loading.loader import load_batches
    from refimpl.run.visit_draws import CentreDraws

    of = (data.buckets, data.bucket_of, command.seed, world)
    if vae is not None:
        vae.to(world.device)
        return measure_latents(lambda batches: _encoded(vae, data, batches, world.device), channels, *of)
    assert cached is not None  # without a cache there would be an autoencoder

    def no_images(batches: Batches, draws: Draws) -> Iterator[Batch]:
        return load_batches(data.index, batches, 0, draws)

    def read(batches: Batches) -> Iterator[Tensor]:
        for batch in read_batches(cached, data.index, batches, 0, CentreDraws(), no_images):
            assert isinstance(batch, LatentBatch)  # every image is in its own bucket
            yield batch.latents.float()

    return measure_latents(read, channels, *of)


def _encoded(vae: VAE, data: StageData, batches: Batches, device: torch.device) -> Iterator[Tensor]:
    """Latents of centre crops."""
    import torch

    from refimpl.autoencoder.training import centre_crops

    for images in centre_crops(data.index, batches):
        with torch.no_grad():
            latents = vae.encode(images.to(device))
        yield latents


def find_autoencoder(settings: LatentConfig, shape: VAEConfig, init_from: str, given: str) -> VAE:
    """The frozen autoencoder to encode with: of the file `given`, or else the one that training would use.

    init_from  the checkpoint that training would start from; empty for none

    Raises InputError when there is none yet.
    """
    from refimpl.interop.run.run_folder import load_autoencoder
    from refimpl.train.setup.init_from import open_start, start_vae

    weights, made = given or settings.weights, _made(settings)
    if weights:
        return load_autoencoder(Path(weights), shape)
    start = open_start(init_from)
    vae = start_vae(start, shape, init_from) if start is not None else None
    if vae is not None:
        return vae
    if settings.folder and made.is_file():
        return load_autoencoder(made, shape)
    raise InputError(NO_AUTOENCODER)


def check_encodable(config: Config, given: str, with_text: bool = False) -> None:
    """Raises InputError listing the paths of what is to be encoded, and of what with, that are wrong.

    given      the autoencoder's file where it is not the settings' own; empty for that
    with_text  whether captions are encoded too
    """
    weights = given or config.latents.weights
    latents = replace(config.latents, weights=weights, train_steps=1)  # whether there is one is asked below
    heldout = config.data.heldout if config.data.demo else ""  # drawn with the others, or not encoded
    data = replace(config.data, cache="", heldout=heldout)  # the cache may be what is to be written
    named = replace(config, data=data, latents=latents)
    problems = [*image_problems(named), *network_problems(named, with_text)]
    if not (weights or config.train.init_from or _made(config.latents).is_file()):
        problems.append(NO_AUTOENCODER)
    if given:
        problems = [problem.replace("latents.weights", WEIGHTS) for problem in problems]
    refuse(problems)


def _made(settings: LatentConfig) -> Path:
    """The autoencoder that training has made, or will make."""
    return Path(settings.folder) / "autoencoder.safetensors"
