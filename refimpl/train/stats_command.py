"""`refimpl stats`: a data set's scale-and-shift by Welford's streaming average (N App. B, Fig. 8)."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from refimpl.errors import InputError
from refimpl.interop.committed import replace_text
from refimpl.interop.run_folder import load_autoencoder
from refimpl.train.autoencoder import measure_scale_shift
from refimpl.train.config import Config
from refimpl.train.distributed import join_world
from refimpl.train.prepare import prepare_data, read_stage
from refimpl.train.presets import load_config


@dataclass(frozen=True)
class StatsCommand:
    """Encodes every image of a data set once and writes the mean and std of each latent channel as a preset."""

    config: Annotated[str, tyro.conf.Positional]
    """preset or TOML file: its data, buckets and autoencoder are used"""
    out: Path = Path("scale_shift.json")
    """the preset to write; a configuration uses it as latents.scale_shift"""
    folder: str = ""
    """images to measure, instead of the configuration's"""
    weights: str = ""
    """autoencoder's safetensors file, instead of the configuration's"""
    device: str = "auto"
    """auto, cpu or cuda"""


def stats_command(arguments: list[str], program: str = "refimpl stats") -> None:
    """Measures, prints the table of N Fig. 8 for this data set, and writes the preset."""
    command = tyro.cli(StatsCommand, args=arguments, prog=program)
    if command.out.exists():
        raise InputError(f"--out {command.out} exists; choose another name")
    config = load_config(command.config)
    if command.folder:
        config = replace(config, data=replace(config.data, folder=command.folder, demo=False))
    weights = autoencoder_file(config, command.weights)
    world = join_world(command.device)
    prepare_data(config)
    data = read_stage(config, config.all_stages()[-1])
    vae = load_autoencoder(weights, config.vae).to(world.device)
    scale_shift, statistics = measure_scale_shift(vae, data.index, data.buckets, data.bucket_of, world.device)
    replace_text(command.out, scale_shift.to_json() + "\n")
    print(json.dumps({"images": len(data.index), "latent_cells": statistics.count, "out": str(command.out)}))
    for channel, (mean, std) in enumerate(zip(scale_shift.mean, scale_shift.std, strict=True)):
        print(f"channel {channel}: mean {mean:9.4f}   std {std:9.4f}")


def autoencoder_file(config: Config, given: str) -> Path:
    """The safetensors file of the autoencoder to encode with: `given`, or else the configuration's.

    Raises InputError when neither names one.
    """
    weights = given or config.latents.weights
    if weights:
        return Path(weights)
    made = Path(config.latents.folder) / "autoencoder.safetensors"
    if not config.latents.folder or not made.is_file():
        raise InputError("no autoencoder to encode with; name its safetensors file with --weights")
    return made
