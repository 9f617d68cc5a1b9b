"""Training from a cache instead of images: what it must hold, and what makes it stale (not from a paper)."""

from pathlib import Path

import numpy as np

from refimpl.cache.latents import CachedLatents, LatentCache, encoder_fingerprint, open_latents
from refimpl.cache.text_states import CachedTextStates, TextCache, open_text, text_encoding
from refimpl.data.config import DataConfig
from refimpl.data.images.decode import BadImage
from refimpl.data.index.content import content, stamps
from refimpl.data.index.data_set import Index
from refimpl.errors import InputError
from refimpl.latents.vae import VAE
from refimpl.run.stage import StageData
from refimpl.run.world import World
from refimpl.storage.store import Int64s, find_rows, listed
from refimpl.text.config import ImagePromptConfig, TextConfig
from refimpl.text.states import TextStates
from refimpl.text.towers import Towers

AGAIN = "run `refimpl cache` again, which encodes only these"


def open_cache(settings: DataConfig, image_prompt: ImagePromptConfig) -> LatentCache | None:
    """The latents that `data.cache` names; None where it is empty.

    Raises InputError when they can't be read, were decoded differently, or lack the mirrored crops that the settings
    ask for.
    """
    if not settings.cache:
        return None
    if image_prompt.folder:
        raise InputError("image_prompt.folder embeds the images themselves; leave data.cache empty")
    cache = open_latents(Path(settings.cache))
    decoder = cache.store.manifest.encoding.get("decoder")
    if decoder != settings.decoder:
        raise InputError(
            f"data.cache {settings.cache} was made with data.decoder {decoder!r}, not {settings.decoder!r}; "
            "set it to that, or run `refimpl cache` again"
        )
    if settings.horizontal_flip and not cache.flips:
        raise InputError(
            f"data.horizontal_flip needs mirrored latents, which data.cache {settings.cache} does not hold; write "
            "them with `refimpl cache --flips`"
        )
    return cache


def find_latents(cache: LatentCache, data: StageData, where: str, world: World) -> CachedLatents:
    """Finds a stage's images in the cache; rank 0 does so, and compares every image with what was encoded.

    where  the cache's folder, for messages
    An image file whose size and modification time match its entry counts as unchanged; otherwise its SHA-256 decides.
    Raises InputError, naming ids, when images are missing from the cache or have changed since.
    """
    rows = world.object_from_main(lambda: _find(cache, data, where))
    return CachedLatents(cache, rows, data.buckets, data.bucket_of)


def _find(cache: LatentCache, data: StageData, where: str) -> Int64s:
    lookup, index = cache.store.lookup, data.index
    found = np.full(len(index), -1, np.int64)
    missing, changed = [], []
    for number, (width, height) in enumerate(data.buckets):
        items = np.flatnonzero(data.bucket_of == number)
        rows = cache.rows_of((width, height))
        ids = data.draw_ids.numpy()[items]
        table = lookup["sample_ids"][rows]
        there = np.isin(ids, table)
        missing += items[~there].tolist()
        items, ids = items[there], ids[there]
        same = find_rows(table, lookup["stamps"][rows], ids, stamps(index.paths, items.tolist()))
        touched = np.flatnonzero(same < 0)
        contents = np.array([_content(index, items[i]) for i in touched.tolist()], np.int64).reshape(-1, 2)
        same[touched] = find_rows(table, lookup["contents"][rows], ids[touched], contents)
        changed += items[same < 0].tolist()
        found[items] = np.where(same < 0, -1, same + rows.start)
    problems = [
        f"{what} {listed([index.ids[item] for item in sorted(items)])}"
        for what, items in (
            (f"it lacks {len(missing)} of {len(index)} images (in their buckets):", missing),
            (f"{len(changed)} images have changed since they were encoded:", changed),
        )
        if items
    ]
    if problems:
        raise InputError(f"data.cache {where} does not fit these images: {'; '.join(problems)}; {AGAIN}")
    return found


def _content(index: Index, item: int) -> tuple[int, int]:
    try:
        return content(index.paths[item])
    except BadImage as error:
        raise BadImage(index.paths[item], f"{error.reason} (id {index.ids[item]!r})") from error


def check_cache(
    settings: DataConfig,
    config: TextConfig,
    cache: LatentCache,
    stages: list[StageData],
    vae: VAE,
    towers: Towers,
) -> None:
    """Raises InputError unless this autoencoder and these towers encoded the cache, and it holds every caption."""
    where = settings.cache
    if cache.store.manifest.encoding.get("encoder") != encoder_fingerprint(vae):
        raise InputError(
            f"data.cache {where} was encoded by a different autoencoder from this run's; run `refimpl cache` with "
            "the run's weights, or into another folder"
        )
    text = _text(settings, config)
    if text is None:
        return
    made_by = text.store.manifest.encoding
    if made_by != text_encoding(towers, config.pooling, str(made_by.get("dtype"))):
        raise InputError(
            f"data.cache {where}: its text states were made by other towers, or with another text.pooling or "
            "text.clean; run `refimpl cache` again"
        )
    for data in stages:
        lacking = np.flatnonzero(text.rows(list(data.index.captions)) < 0)
        if len(lacking):
            names = listed([data.index.ids[item] for item in lacking.tolist()])
            raise InputError(
                f"data.cache {where} lacks the captions of {len(lacking)} images, which are new or have changed: "
                f"{names}; {AGAIN}"
            )


def cached_text(
    settings: DataConfig, config: TextConfig, states: TextStates, world: World
) -> TextStates | CachedTextStates:
    """Text states read from the cache, if it holds any that can be used; else `states`, which runs the towers."""
    text = _text(settings, config)
    return states if text is None else CachedTextStates(text, states, world.device)


def _text(settings: DataConfig, config: TextConfig) -> TextCache | None:
    """The cached states; None if there are none, or if a caption's states change from visit to visit."""
    if not settings.cache or settings.varies_captions or config.is_trained:
        return None
    return open_text(Path(settings.cache))
