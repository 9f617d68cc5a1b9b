"""Hostile cache folders: `refimpl cache --prune` says what is wrong, and touches no file that is not the cache's."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from refimpl.cache.latents import open_latents
from refimpl.cache.prune import prune
from refimpl.commands.data.cache import alone_in
from refimpl.errors import InputError
from refimpl.storage import safetensors_file
from refimpl.storage.store import shard_files
from tests.folders import largest_file
from tests.hostile.corpus import ESCAPES, PICKLE
from tests.hostile.test_writers import refused, tree
from tests.train import caches
from tests.train.runs import ALONE

__all__ = ["refused"]
PRECIOUS = b"not to be lost"


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A configuration and its finished cache of two crops; no test changes it."""
    folder = tmp_path_factory.mktemp("cache")
    config = caches.toml(root, folder)
    return config, caches.write_in_larger_shards(config, folder / "cache", "--crops", "2")


@pytest.fixture
def out(finished: tuple[str, Path], tmp_path: Path) -> Path:
    """A copy of the cache, and a file beside it that is none of its own."""
    (tmp_path / "precious").write_bytes(PRECIOUS)
    return shutil.copytree(finished[1], tmp_path / "cache")


@pytest.fixture
def words(finished: tuple[str, Path], out: Path) -> list[str]:
    """The command that prunes it."""
    sizes = ["--device", "cpu", "--shard-megabytes", "0.1", "--crops", "2"]
    return ["cache", finished[0], "--out", str(out), *sizes, "--prune"]


def run(words: list[str]) -> None:
    caches.cache_command(words[1:])


def test_files_that_are_not_the_caches_stay(words: list[str], out: Path, tmp_path: Path) -> None:
    folder, before = out / "latents", caches.contents(out)
    safetensors_file.write(folder / "mine.safetensors", {"x": torch.zeros(1)})
    (folder / "notes.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    (folder / "latents-folder.safetensors").mkdir()
    (folder / "latents-folder.safetensors" / "kept").write_bytes(PRECIOUS)
    (folder / "latents-gone.safetensors").symlink_to(tmp_path / "nothing")
    (folder / "latents-link.safetensors").symlink_to(tmp_path / "precious")
    (folder / "lookup-link.safetensors").symlink_to(tmp_path / "precious")
    (folder / f"latents-{ESCAPES[:4]}.safetensors").write_bytes(PICKLE)
    run(words)
    found = caches.contents(out)
    assert (tmp_path / "precious").read_bytes() == PRECIOUS
    own = {name: data for name, data in found.items() if name in before}
    assert own == before
    assert found.keys() - before.keys() == {
        "latents/mine.safetensors", "latents/notes.safetensors", "latents/latents-folder.safetensors/kept",
    }  # fmt: skip


def test_a_lock_that_is_a_link_is_not_written_to(
    words: list[str], out: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (out / ".lock").unlink()
    (out / ".lock").symlink_to(tmp_path / "precious")
    assert re.search(r"can't be written to \(Too many levels of symbolic links\)", refused(*words))


@pytest.mark.parametrize("kind", ["latents", "text"])
def test_a_cache_of_a_newer_version_stays(
    kind: str, words: list[str], out: Path, refused: Callable[..., str]
) -> None:
    path = out / kind / "cache.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    if kind == "latents":
        assert "cache.json has format 2, of a newer version" in refused(*words)
    before = tree(out / kind)
    with pytest.raises(InputError, match="format 2"):
        prune(out / kind)
    with pytest.raises(InputError, match="format 2, of a newer version"):
        run(words)
    assert tree(out / kind) == before


def test_a_second_prune_waits_for_none(words: list[str], out: Path, refused: Callable[..., str]) -> None:
    with alone_in(out, ALONE):
        assert "another run is writing to" in refused(*words)
    run(words)


def test_a_full_disk_keeps_what_the_manifest_names(words: list[str], out: Path) -> None:
    """One crop less: every shard has to be written again, and can't be."""
    shortened = ["1" if word == "2" else word for word in words]
    before = {path: path.read_bytes() for path in shard_files(out / "latents")}
    with largest_file(100), pytest.raises(InputError, match=r"could not write .*File too large; free space"):
        run(shortened)
    assert {path: path.read_bytes() for path in shard_files(out / "latents")} == before
    assert open_latents(out).crops == 2
    run(shortened)
    assert open_latents(out).crops == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.update(shards=["../../precious"]),
        lambda table: table.update(lookup="/etc/passwd"),
        lambda table: table.update(shards=7),
        lambda table: table.update(encoding=[]),
        lambda table: table.clear(),
    ],
)
def test_a_manifest_that_lies_is_refused_and_written_anew(
    change: Callable[[dict[str, Any]], object], words: list[str], out: Path, tmp_path: Path
) -> None:
    path = out / "latents" / "cache.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    before = tree(out)
    with pytest.raises(InputError, match=r"cache\.json|format"):
        prune(out / "latents")
    assert tree(out) == before
    run(words)
    assert open_latents(out).crops == 2


@pytest.mark.parametrize(("column", "value"), [("rows", 2**30), ("rows", -5), ("shards", 99), ("shards", -2)])
def test_a_lookup_that_points_nowhere_is_refused(column: str, value: int, out: Path) -> None:
    name = json.loads((out / "latents" / "cache.json").read_text())["lookup"]
    tensors, metadata = safetensors_file.read(out / "latents" / name)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    tensors[column].view(-1)[0] = value
    safetensors_file.write(out / "latents" / name, tensors, metadata)
    before = tree(out)
    for read in (lambda: prune(out / "latents"), lambda: open_latents(out).entry(0, 0, False)):
        with pytest.raises(InputError, match=rf"{name}: .*run `refimpl cache` again"):
            read()
    assert tree(out) == before


def test_the_place_of_a_cache_may_not_be_writable(words: list[str], refused: Callable[..., str]) -> None:
    words[3] = "/proc/cache"
    assert re.search("/proc/cache can't be written to", refused(*words))
    assert not os.path.lexists("/proc/cache")
