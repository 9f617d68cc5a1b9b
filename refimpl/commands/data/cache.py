"""`refimpl cache`: latents and text states of a data set, encoded once (N App. B; R's chunked processing)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from refimpl.checks import check_at_least, check_positive, check_seed
from refimpl.commands.data.stats import check_encodable, find_autoencoder
from refimpl.commands.terminal import parsed
from refimpl.errors import InputError
from refimpl.run.config import Config
from refimpl.run.presets import load_config

if TYPE_CHECKING:
    from refimpl.latents.vae import VAE
    from refimpl.run.world import World

MEGABYTE = 2**20
LOCK = ".lock"


@dataclass(frozen=True)
class CacheCommand:
    """Encodes every image and caption of all stages once. Run again, it encodes what is missing or has changed.

    It may be killed at any moment and continued, even with a different number of processes (`torchrun --no-python
    --nproc-per-node=N refimpl cache …`).
    """

    config: Annotated[str, tyro.conf.Positional]
    """Preset or TOML file whose data, buckets, autoencoder and text towers are used."""
    out: Path
    """Cache folder to write; a configuration uses it as data.cache."""
    crops: int = 1
    """Number K of crops of each image: visit v of training sees crop v mod K."""
    flips: bool = False
    """Also encode the mirrored crops, as entries of their own; data.horizontal_flip needs them."""
    text: bool = True
    """Also encode the captions, for text towers that stay frozen."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the autoencoder's arithmetic and of everything stored."""
    seed: int | None = None
    """Seed of the crops; the configuration's train.seed when left out."""
    tile: int = 0
    """Images higher than this many px pass through each layer of the autoencoder in tiles as wide as the image and
    this high, such as 64: a third of the memory, the same latents up to rounding. 0 turns tiling off."""
    batch_pixels: int = 4 * MEGABYTE
    """Pixels of the images that are encoded at once; halved when the memory does not suffice."""
    text_rows: int = 0
    """Chunks of 75 tokens that the towers encode at once; 0 for as many as training does, which gives its bits."""
    shard_megabytes: float = 128.0
    """Size of one file in megabytes, which is also the most that one process can lose when it is killed."""
    rehash: bool = False
    """Compare the SHA-256 of every image, even if its size and modification time have not changed."""
    verify: bool = False
    """First read every shard and compare it with its SHA-256."""
    prune: bool = False
    """Then remove what this configuration does not use: entries of images that are gone or have changed, of crops
    above K, and of other settings. Not while a run is training from the cache."""
    folder: str = ""
    """Images to encode instead of the configuration's; empty for the configuration's."""
    weights: str = ""
    """Safetensors file of the autoencoder to use instead of the configuration's; empty for the configuration's."""
    device: str = "auto"
    """Device to encode on: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        for name in ("crops", "batch_pixels"):
            check_at_least(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        check_positive("--shard-megabytes", self.shard_megabytes)
        check_at_least("--text-rows", self.text_rows, 0)
        check_at_least("--tile", self.tile, 0)
        if self.seed is not None:
            check_seed("--seed", self.seed)


def cache_command(arguments: list[str], program: str = "refimpl cache") -> None:
    """Writes or continues a cache, and prints what it holds; every process of a torchrun calls it."""
    command = parsed(CacheCommand, arguments, program)
    config = load_config(command.config)
    if command.folder:
        config = replace(config, data=replace(config.data, folder=command.folder, demo=False))
    check_encodable(config, command.weights, command.text and not config.data.varies_captions)
    from refimpl.run.world import join_world, leave_world, lost_peers_named

    vae = find_autoencoder(config.latents, config.vae, config.train.init_from, command.weights)
    world = join_world(command.device)
    with lost_peers_named(world), alone_in(command.out, world):
        write_cache(command, config, vae, world)
    leave_world(world)


def write_cache(command: CacheCommand, config: Config, vae: VAE, world: World) -> None:
    """Writes the latents, then the text states. Raises InputError for bad data, too little memory or a full disk."""
    import torch

    from refimpl.cache.encode import BACKGROUND, FittingEncoder
    from refimpl.cache.encode_latents import LatentOptions, write_latents
    from refimpl.cache.encode_text import write_text
    from refimpl.cache.latents import KIND, encoding_of
    from refimpl.cache.made_for import made_for
    from refimpl.cache.plan import pictures_of
    from refimpl.cache.prune import prune
    from refimpl.cache.text_states import KIND as TEXT
    from refimpl.cache.text_states import text_encoding
    from refimpl.data.images.fast_jpeg import check_fast
    from refimpl.run.stage import read_stage, write_demo_data
    from refimpl.storage.store import DTYPES
    from refimpl.train.setup.init_from import open_start, start_towers

    if config.data.decoder == "fast":
        check_fast()
    world.on_main(lambda: write_demo_data(config.data))
    stages = [read_stage(config, stage, is_told=world.is_main) for stage in config.all_stages()]
    pictures = pictures_of(stages)
    seed = config.train.seed if command.seed is None else command.seed
    encoding = encoding_of(vae, command.dtype, command.tile, seed, BACKGROUND, config.data.decoder)
    cell_bytes = config.vae.latent_channels * DTYPES[command.dtype].itemsize
    options = LatentOptions(
        crops=command.crops,
        flips=command.flips,
        shard_bytes=int(command.shard_megabytes * MEGABYTE),
        seed=seed,
        decoder=config.data.decoder,
        workers=config.data.workers,
        timeout=config.data.worker_timeout,
        rehash=command.rehash,
        verify=command.verify,
        made_for=made_for(config),
    )
    encoder = FittingEncoder(vae, world.device, command.dtype, command.tile, command.batch_pixels)
    counts = write_latents(
        command.out, pictures, encoding, encoder, cell_bytes, config.vae.factor, options, world
    )
    if command.prune:
        counts |= world.on_main(lambda: prune(command.out / KIND))
    _say(world, {"kind": KIND, **counts, "out": str(command.out)})
    if not command.text:
        return
    if config.data.varies_captions:
        left_out = "left out: data.shuffle_tags gives a caption other states at every visit, as data.tag_dropout does"
        _say(world, {"text": left_out})
        return
    towers = start_towers(open_start(config.train.init_from), config.text, config.train.init_from)
    for tower in filter(None, towers[1:]):
        torch.nn.Module.to(tower, world.device)
    made_by = text_encoding(towers, config.text.pooling, command.dtype)
    captions = [caption for data in stages for caption in data.index.captions]
    size = int(command.shard_megabytes * MEGABYTE)
    told = write_text(
        command.out, captions, towers, made_by, size, command.text_rows or None, command.verify, world
    )
    if command.prune:
        told |= world.on_main(lambda: prune(command.out / TEXT))
    _say(world, {"kind": TEXT, **told, "out": str(command.out)})


@contextlib.contextmanager
def alone_in(out: Path, world: World) -> Iterator[None]:
    """Holds the cache folder's lock on rank 0.

    Raises InputError on every rank when another run holds it, or the folder can't be made.
    """
    from refimpl.storage.ranks.lock import HeldElsewhere, locked, unlocked

    held: list[int] = []  # descriptors: on rank 0, one

    def lock() -> None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            held.append(locked(out / LOCK, "writing to it too"))
        except HeldElsewhere as error:
            raise InputError(
                f"another run is writing to {out}; wait for it, end it, or name another folder"
            ) from error
        except OSError as error:
            raise InputError(f"--out {out} can't be written to ({error.strerror}); name another") from error

    try:
        world.on_main(lock)
        yield
    finally:
        for descriptor in held:
            unlocked(descriptor)


def _say(world: World, row: dict[str, object]) -> None:
    if world.is_main:
        print(json.dumps(row))
