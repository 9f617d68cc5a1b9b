"""`refimpl cache --prune`: what nothing uses goes, what is used stays, whenever the process dies."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from refimpl.cache.latents import open_latents
from refimpl.cache.prune import prune
from refimpl.cache.text_states import open_text
from refimpl.errors import InputError
from refimpl.storage.shards import map_shard
from refimpl.storage.store import open_store
from tests.folders import flip_last_bit
from tests.tensors import same
from tests.train import caches


@pytest.fixture
def stale(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, Path]:
    """A configuration, and a cache of 18 images, two crops and two seeds, four of whose images are gone since."""
    config, out = caches.toml(data, tmp_path), tmp_path / "cache"
    caches.write_in_larger_shards(config, out, "--crops", "2", "--seed", "1")
    caches.write_in_larger_shards(config, out, "--crops", "2")
    for number in (0, 3, 4, 9):
        (data / "train" / f"{number:03d}.png").unlink()
        (data / "train" / f"{number:03d}.txt").unlink()
    capsys.readouterr()
    return config, out


def used(out: Path) -> dict[tuple[int, int], torch.Tensor]:
    """Every latent that the finished cache names, by sample id and number of the entry."""
    cache = open_latents(out)
    table = cache.store.lookup["sample_ids"]
    return {
        (int(name), crop): cache.entry(row, crop, False)[0].clone()
        for row, name in enumerate(table.tolist())
        for crop in range(cache.crops)
    }


def rows(out: Path) -> int:
    """Rows of all shards of latents, of whatever settings."""
    return sum(len(map_shard(path).tensors["sample_ids"]) for path in caches.shards(out))


def test_what_is_used_stays_and_the_rest_goes(
    stale: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = stale
    caches.write_in_larger_shards(config, out, "--crops", "2")
    before, held = used(out), rows(out)
    capsys.readouterr()
    caches.write_in_larger_shards(config, out, "--crops", "2", "--prune")
    assert same(used(out), before)
    assert (held, len(before), rows(out)) == (72, 28, 28)
    lines = capsys.readouterr().out.splitlines()
    latents, text = (json.loads(line) for line in lines if line.startswith("{"))
    assert (latents["encoded"], text["encoded"]) == (0, 0)
    assert latents["pruned_files"] > 0
    assert latents["pruned_bytes"] > 0
    texts = open_text(out)
    assert texts is not None
    stated = {path.name for path in caches.shards(out, "text")}
    assert set(texts.store.manifest.shards) == stated
    first = caches.contents(out)
    caches.write_in_larger_shards(config, out, "--crops", "2", "--prune")
    assert caches.contents(out) == first


def test_fewer_crops_are_fewer_entries(stale: tuple[str, Path]) -> None:
    config, out = stale
    caches.write_in_larger_shards(config, out, "--prune")
    assert rows(out) == 14


def stopping(original: Callable[..., Any], left: Iterator[int]) -> Callable[..., Any]:
    """The function while `left` lasts; after that KeyboardInterrupt, also of what would clean up."""

    def call(*args: Any, **options: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return original(*args, **options)

    return call


@pytest.mark.parametrize("kind", ["latents", "text"])
def test_it_may_be_killed_at_any_step(
    kind: str, stale: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before each rename and each deletion in turn: the cache is always whole, and is pruned by the next."""
    config, out = stale
    caches.write_in_larger_shards(config, out, "--crops", "2")
    expected = used(out)
    whole = shutil.copytree(out, tmp_path / "whole")
    prune(whole / kind)
    wanted, stops = caches.contents(whole), 0
    while True:
        folder = shutil.copytree(out, tmp_path / f"{stops}")
        with monkeypatch.context() as patch:
            left = iter(range(stops))
            for place, name in ((os, "replace"), (Path, "unlink")):
                patch.setattr(place, name, stopping(getattr(place, name), left))
            try:
                prune(folder / kind)
                break
            except KeyboardInterrupt:
                pass
        assert same(used(folder), expected)
        assert open_store(folder / kind).manifest.shards
        for leftover in (folder / kind).glob(".*.writing-*"):  # as `refimpl cache` begins
            leftover.unlink()
        prune(folder / kind)
        assert {name: data for name, data in caches.contents(folder).items() if name.startswith(kind)} == {
            name: data for name, data in wanted.items() if name.startswith(kind)
        }
        stops += 1
    assert stops > 4


def test_a_killed_process_leaves_a_cache_that_goes_on(stale: tuple[str, Path]) -> None:
    config, out = stale
    caches.write_in_larger_shards(config, out, "--crops", "2")
    expected = used(out)
    assert caches.killed_write(config, out, "rename", 7, "--crops", "2", "--prune") == -9
    assert same(used(out), expected)
    caches.write_in_larger_shards(config, out, "--crops", "2", "--prune")
    assert same(used(out), expected)
    assert rows(out) == 28


def test_damage_is_not_given_a_digest_of_its_own(stale: tuple[str, Path]) -> None:
    config, out = stale
    caches.write_in_larger_shards(config, out, "--crops", "2")
    for path in caches.shards(out):
        flip_last_bit(path)
    with pytest.raises(InputError, match="its content does not match the SHA-256"):
        prune(out / "latents")
    assert rows(out) == 72


def test_an_unfinished_cache_is_not_pruned(tmp_path: Path) -> None:
    (tmp_path / "latents").mkdir()
    with pytest.raises(InputError, match="holds no finished cache"):
        prune(tmp_path / "latents")
