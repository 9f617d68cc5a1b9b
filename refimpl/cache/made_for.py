"""The configuration that a cache was made for, kept in it, so that its images are found again (not from a paper)."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from refimpl.cache.latents import open_latents
from refimpl.data.config import DataConfig
from refimpl.errors import InputError
from refimpl.names import near_path
from refimpl.run.config import Config
from refimpl.tables import from_table, to_table

AGAIN = "run `refimpl cache` again, which encodes nothing anew and notes them"


def made_for(config: Config) -> dict[str, Any]:
    """What a cache keeps of the configuration it is made for: all of it, with absolute folders of images.

    The demonstration's images are not drawn again where they are gone, no cache is named, and how many processes
    load images, which changes no byte, is left at its default.
    """
    plain = DataConfig()
    data = replace(
        config.data,
        folder=_absolute(config.data.folder),
        heldout=_absolute(config.data.heldout),
        demo=False,
        cache="",
        workers=plain.workers,
        worker_timeout=plain.worker_timeout,
    )
    stages = tuple(replace(stage, folder=_absolute(stage.folder)) for stage in config.stages)
    return to_table(replace(config, data=data, stages=stages))


def _absolute(folder: str) -> str:
    return os.path.abspath(folder) if folder else ""


def config_of_cache(folder: str) -> Config:
    """The configuration that a cache was made for.

    Raises InputError when the cache can't be read, keeps none, or keeps one that this version does not know.
    """
    table = _kept(folder)
    if not table:
        raise InputError(
            f"--cache {folder} does not say which images it was made from; name the configuration, or {AGAIN}"
        )
    return from_table(Config, table, f"the configuration kept in {folder}")


def _kept(folder: str) -> dict[str, Any]:
    return open_latents(Path(folder)).made_for


def images_of_cache(config: Config) -> Config:
    """The configuration with the images that its `data.cache` was made from, where it names none itself.

    Raises InputError when the cache does not say, or they are gone.
    """
    named = config.all_stages()[-1].folder
    if not config.data.cache or os.path.exists(named) or (named and not _kept(config.data.cache)):
        return config
    images = config_of_cache(config.data.cache).all_stages()[-1].folder
    if named not in ("", images):
        return config  # reading it will name it
    if not os.path.exists(images):
        raise InputError(
            f"--cache {config.data.cache} was made from {images}, which is gone{near_path(images)}; name the images "
            "with --folder"
        )
    return replace(config, data=replace(config.data, folder=images, demo=False))
