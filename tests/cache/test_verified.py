"""A cache's shards are read whole before training, each once in a job, and a damaged one is named."""

from pathlib import Path

import numpy as np
import pytest
import torch

from refimpl.cache import verified
from refimpl.cache.latents import open_latents
from refimpl.cache.verified import verify_shards
from refimpl.errors import InputError
from refimpl.run.world import World
from refimpl.storage.shards import Shard
from tests.folders import flip_last_bit
from tests.train import caches, runs


@pytest.fixture
def cache(root: Path, tmp_path: Path) -> Path:
    return caches.write(caches.toml(root, tmp_path), tmp_path / "cache")


@pytest.mark.parametrize("kind", ["latents", "text"])
def test_a_damaged_shard_ends_the_run_before_its_first_step(
    kind: str, cache: Path, root: Path, tmp_path: Path
) -> None:
    damaged = caches.shards(cache, kind)[-1]
    flip_last_bit(damaged)
    config = runs.config(root, tmp_path / "run", data={"cache": str(cache)})
    with pytest.raises(
        InputError, match=rf"{damaged}: its content does not match the SHA-256 .*refimpl cache"
    ):
        runs.go(config)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    trusting = runs.config(root, tmp_path / "other", data={"cache": str(cache), "verify_cache": False})
    runs.go(trusting)


@pytest.mark.parametrize("copies", [1, 2])
def test_ranks_share_the_shards_that_they_see_the_same_files_of(
    copies: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four ranks on one machine, or on two that hold a copy each."""
    store = open_latents(cache).store
    numbers = np.arange(len(store.manifest.shards))
    assert len(numbers) >= 4
    read: list[list[str]] = []
    for rank in range(4):
        read.append([])

        def noted(shard: Shard, rank: int = rank) -> None:
            read[rank].append(shard.path.name)

        def gathered(world: World, own: object) -> list[object]:
            others: object = [] if isinstance(own, list) else None
            return [own if other % copies == world.rank % copies else others for other in range(4)]

        monkeypatch.setattr(verified, "verify_shard", noted)
        monkeypatch.setattr(verified, "gathered", gathered)
        verify_shards(store, numbers, World(rank, 4, torch.device("cpu")))
    for copy in range(copies):
        seen = [name for rank in range(copy, 4, copies) for name in read[rank]]
        assert sorted(seen) == sorted(store.manifest.shards)
