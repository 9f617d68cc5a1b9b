"""A cache knows the configuration that it was made for, and so where its images are."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from refimpl.cache.latents import MADE_FOR
from refimpl.cache.made_for import config_of_cache, images_of_cache, made_for
from refimpl.commands.data.stats import stats_command
from refimpl.errors import InputError
from refimpl.run.config import Config
from refimpl.run.presets import load_config
from refimpl.tables import from_table
from tests.train import caches, runs


def stats(out: Path, *words: str) -> str:
    stats_command([*words, "--out", str(out), "--device", "cpu"])
    return out.read_text()


def test_statistics_of_a_cache_need_nothing_else(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another working directory too, though the configuration names its images by a relative path."""
    shutil.copytree(root, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    config = caches.toml(Path("data"), tmp_path)
    cache = str(caches.write(config, tmp_path / "cache", "--no-text"))
    with_config = stats(tmp_path / "1.json", config, "--cache", cache)
    monkeypatch.chdir("/")
    assert stats(tmp_path / "2.json", "--cache", cache) == with_config
    bare = caches.toml(Path(), tmp_path, data={"folder": ""})
    assert stats(tmp_path / "3.json", bare, "--cache", cache) == with_config
    assert config_of_cache(cache).data.folder == str(tmp_path / "data" / "train")

    shutil.move(tmp_path / "data", tmp_path / "dato")
    meant = f"which is gone; did you mean {tmp_path}/dato/train\\?; name the images with --folder"
    for words in ([], [bare]):
        with pytest.raises(InputError, match=meant):
            stats(tmp_path / "4.json", *words, "--cache", cache)
    moved = ("--cache", cache, "--folder", str(tmp_path / "dato" / "train"))
    assert stats(tmp_path / "5.json", *moved) == with_config
    assert not (tmp_path / "4.json").exists()


def test_a_cache_that_does_not_say_is_named(root: Path, tmp_path: Path) -> None:
    """As versions before this one wrote them; written again, nothing is encoded anew."""
    config = caches.toml(root, tmp_path)
    cache = caches.write(config, tmp_path / "cache", "--no-text")
    manifest = cache / "latents" / "cache.json"
    table = json.loads(manifest.read_text())
    del table["details"][MADE_FOR]
    manifest.write_text(json.dumps(table))
    with pytest.raises(InputError, match=r"does not say which images .* run `refimpl cache` again"):
        stats(tmp_path / "a.json", "--cache", str(cache))
    assert stats(tmp_path / "b.json", config, "--cache", str(cache))
    shards = {path.name: path.stat().st_mtime_ns for path in cache.rglob("latents-*.safetensors")}
    caches.write(config, tmp_path / "cache", "--no-text")
    assert shards == {path.name: path.stat().st_mtime_ns for path in cache.rglob("latents-*.safetensors")}
    assert stats(tmp_path / "c.json", "--cache", str(cache))


def test_neither_a_configuration_nor_a_cache_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"name a preset or a TOML file, or a cache with --cache"):
        stats(tmp_path / "a.json")
    with pytest.raises(InputError, match="holds no finished cache"):
        stats(tmp_path / "a.json", "--cache", str(tmp_path))
    (tmp_path / "cached").mkdir()
    with pytest.raises(InputError) as refused:
        stats(tmp_path / "a.json", "--cache", str(tmp_path / "cachet"))
    assert str(refused.value) == (
        f"{tmp_path}/cachet: there is no such folder; did you mean {tmp_path}/cached?; write a cache with `refimpl "
        "cache`, and name its folder"
    )


def test_what_is_kept_is_the_configuration_with_absolute_folders(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = from_table(Config, made_for(load_config("tiny")), "kept")
    assert (kept.data.folder, kept.data.heldout) == tuple(
        str(tmp_path / "demo-data" / part) for part in ("train", "heldout")
    )
    assert not kept.data.demo
    config = runs.config(root, tmp_path, stages=[{"from_step": 0}, {"from_step": 1, "folder": "later"}])
    stages = from_table(Config, made_for(config), "kept").all_stages()
    assert [stage.folder for stage in stages] == [str(root / "train"), str(tmp_path / "later")]


def test_named_images_are_left_as_they_are(root: Path, tmp_path: Path) -> None:
    config = runs.config(root, tmp_path)
    assert images_of_cache(config) == config
    with_cache = replace(config, data=replace(config.data, cache=str(tmp_path / "none")))
    assert images_of_cache(with_cache) == with_cache
    elsewhere = replace(config, data=replace(config.data, folder=str(tmp_path / "x")))
    assert images_of_cache(elsewhere) == elsewhere
