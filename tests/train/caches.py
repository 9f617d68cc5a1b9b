"""What the tests of caches share: caches written by the command, in this process or in ranks of its own."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from refimpl.cache import encode_latents as cache_latents
from refimpl.commands.data.cache import cache_command
from refimpl.storage.shards import map_shard
from tests.killing import kill_at
from tests.train import runs
from tests.train.processes import run_and_kill

SMALL_SHARDS = ("--shard-megabytes", "0.003")  # a few images of runs.SIZES each


def write(config: str, out: Path, *options: str) -> Path:
    """`refimpl cache` on the CPU; returns the cache folder."""
    cache_command([config, "--out", str(out), "--device", "cpu", *SMALL_SHARDS, *options])
    return out


def write_one_damaged(folder: Path, root: Path) -> tuple[Path, bytes]:
    """101 images in `folder`/train, number 50 cut off, and the autoencoder beside them.

    returns  folder/train, and the whole content of image 50
    """
    images = runs.write_images(folder / "train", 101)
    shutil.copy(root / "autoencoder.safetensors", folder)
    whole = (images / "050.png").read_bytes()
    (images / "050.png").write_bytes(whole[:-30])
    return images, whole


def files(out: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of every file of a cache, by name; the lock left out."""
    return {
        str(path.relative_to(out)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def contents(out: Path) -> dict[str, bytes]:
    """Content of every file of a cache, by name."""
    return {name: content for name, (_, content) in files(out).items()}


def shards(out: Path, kind: str = "latents") -> list[Path]:
    """The shards of a kind, by name."""
    return sorted((out / kind).glob(f"{kind}-*.safetensors"))


def entries(out: Path) -> dict[tuple[int, int, int, str], torch.Tensor]:
    """Every latent by (sample id, crop, mirrored, bucket and content)."""
    found = {}
    for path in shards(out):
        shard = map_shard(path)
        columns = shard.tensors
        for row, latent in enumerate(columns["latents"]):
            crop, mirrored = columns["entries"][row].tolist()
            what = f"{shard.metadata['group']} {columns['contents'][row].tolist()}"
            found[int(columns["sample_ids"][row]), crop, mirrored, what] = latent
    return found


def write_until_killed(arguments: Sequence[str], at: str, count: int) -> None:
    """Writes a cache, and kills itself with SIGKILL at the `count`-th call of `at`: "fsync" or "rename" of a file,
    or "encode", of a batch of images.
    """
    if at == "encode":
        place: Any = cache_latents.FittingEncoder
        name = "_encode"
    else:
        place, name = os, {"fsync": "fsync", "rename": "replace"}[at]
    kill_at(place, name, count)
    cache_command(list(arguments))


def write_in_larger_shards(config: str, out: Path, *options: str) -> Path:
    """The same with several captions in a shard, and all images of a bucket."""
    cache_command([config, "--out", str(out), "--device", "cpu", "--shard-megabytes", "0.1", *options])
    return out


def killed_write(config: str, out: Path, at: str, count: int, *options: str) -> int:
    """Exit code of `write_until_killed` in a process of its own."""
    arguments = [config, "--out", str(out), "--device", "cpu", *SMALL_SHARDS, *options]
    return run_and_kill(write_until_killed, arguments, at, count)


def toml(root: Path, tmp_path: Path, /, **sections: Any) -> str:
    """`runs.table` as a TOML file in tmp_path."""
    return runs.write_toml(root, tmp_path / "config.toml", tmp_path / "run", **sections)
