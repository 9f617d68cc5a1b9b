"""A cache's shards compared with their SHA-256 before they are trained on (not from a paper)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from refimpl.cache.latents import CachedLatents
from refimpl.cache.text_states import CachedTextStates
from refimpl.errors import InputError
from refimpl.run.shared_work import gathered
from refimpl.run.world import World
from refimpl.storage.shards import verify_shard
from refimpl.storage.store import MANIFEST, Store


def verify_latents(cached: Sequence[CachedLatents | None], world: World) -> None:
    """Reads the shards that hold the stages' latents, once in the job. See `verify_shards`."""
    stages = [each for each in cached if each is not None]
    if stages:
        store = stages[0].cache.store  # `data.cache` names one for all stages
        rows = np.concatenate([each.rows for each in stages])
        verify_shards(store, np.unique(store.lookup["shards"][rows]), world)


def verify_text(states: object, captions: Sequence[Sequence[str]], world: World) -> None:
    """Reads the shards that hold the captions' states, once in the job, where they come from a cache."""
    if isinstance(states, CachedTextStates):
        store = states.cache.store
        rows = [states.cache.rows(list(each)) for each in (*captions, [""])]
        verify_shards(store, np.unique(store.lookup["shards"][np.concatenate(rows)]), world)


def verify_shards(store: Store, numbers: npt.NDArray[np.integer[Any]], world: World) -> None:
    """Reads shards whole and compares their digests; the ranks that see the same files share the work.

    Ranks on machines that hold copies of their own each have theirs read: the manifest's inode and time of
    modification tell.
    Raises InputError, on every rank, that names each shard that is damaged or gone.
    """
    file = (store.folder / MANIFEST).stat()
    copies = gathered(world, (file.st_ino, file.st_mtime_ns, file.st_size))
    sharing = [rank for rank, copy in enumerate(copies) if copy == copies[world.rank]]
    own = numbers[sharing.index(world.rank) :: len(sharing)].tolist()
    what = f"verifying {store.folder.name}"
    bad = []
    for number in tqdm(own, what, unit="shard", disable=not world.is_main, dynamic_ncols=True, leave=False):
        try:
            verify_shard(store.shard(number))
        except InputError as error:
            bad.append(str(error))
    found = sorted({message for part in gathered(world, bad) for message in part})
    if found:
        raise InputError("\n".join(found))
