"""Photographs cached at SDXL's sizes: killed midway, and continued by the same command.

200 of them through the tiny autoencoder and the tiny text towers, to the bits of a run that nobody killed; and
through the autoencoder's full shape, where a megapixel takes a core about a minute and a half, which makes 200 a
matter of hours: REFIMPL_CACHED_IMAGES sets how many. REFIMPL_PHOTOGRAPHS names a JSON file for the time and memory
of the 200: benchmarks/results/photographs.json is one.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import timing
from benchmarks.bench_vae import random_vae
from refimpl.cache.latents import LatentCache, open_latents
from refimpl.data.crop import cover_and_crop
from refimpl.data.demo.photographs import photograph_crops
from refimpl.data.images.decode import decode
from refimpl.diffusion.philox import sample_id
from refimpl.latents.pixels import from_pixels
from refimpl.latents.vae import VAE, VAEConfig
from refimpl.run.visit_draws import VisitDraws
from refimpl.storage import safetensors_file
from refimpl.storage.shards import map_shard
from tests.tolerances import NETWORK_FLOAT32

IMAGES = int(os.environ.get("REFIMPL_CACHED_IMAGES", "200"))
RECORD = "REFIMPL_PHOTOGRAPHS"  # a JSON file; without it nothing is written
PATIENCE = 3 * 3600  # s until half of the images are cached, on a slow core
PROGRAM = "from refimpl.commands.main import main; main()"


def write_photographs(folder: Path, count: int, area: int) -> None:
    """Crops of the bundled photographs, as many as are asked for, each of a little more than `area` px², as JPEG."""
    folder.mkdir()
    number = 0
    for seed in range(count):
        for _, image, _ in photograph_crops(False, seed):
            scale = (1.05 * area / (image.width * image.height)) ** 0.5
            size = round(image.width * scale), round(image.height * scale)
            image.resize(size, Image.Resampling.LANCZOS).save(folder / f"{number:03d}.jpg", quality=95)
            (folder / f"{number:03d}.txt").write_text(f"photograph {number}")
            number += 1
            if number == count:
                return


SDXL = "[buckets]\npreset = 'sdxl'\n"
SMALL = """[buckets]
max_area = 4096
max_side = 128
min_side = 32
step = 8
"""
TINY = """[vae]
channels = 8
channel_mult = [1, 2, 4, 8]
res_blocks = 1
groups = 2
[text]
towers = "tiny"
[unet]
channels = 32
channel_mult = [1, 2, 3]
transformer_depth = [0, 1, 1]
middle_depth = 1
res_blocks = 1
head_dim = 32
context_dim = 96
vector_dim = 1600
groups = 8
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "area", "vae_config", "settings", "megabytes"),
    [
        pytest.param(40, 4096, VAEConfig.tiny(), SMALL + TINY, 4096 / 2**21, id="the same, small"),
        pytest.param(200, 1024 * 1024, VAEConfig.tiny(), SDXL + TINY, 1, id="SDXL's sizes, tiny network"),
        pytest.param(IMAGES, 1024 * 1024, VAEConfig.sdxl(), SDXL, 0.1, id="full size"),
    ],
)
def test_photographs_are_cached_by_a_run_that_was_killed(
    images: int, area: int, vae_config: VAEConfig, settings: str, megabytes: float, tmp_path: Path
) -> None:
    write_photographs(tmp_path / "images", images, area)
    vae = random_vae(vae_config)
    safetensors_file.write(tmp_path / "vae.safetensors", vae.state_dict())
    (tmp_path / "config.toml").write_text(
        f"[data]\nfolder = '{tmp_path}/images'\n{settings}[latents]\nweights = '{tmp_path}/vae.safetensors'\n"
    )
    out = tmp_path / "cache"
    is_tiny = vae_config == VAEConfig.tiny()
    command = [
        sys.executable, "-c", PROGRAM, "cache", str(tmp_path / "config.toml"), "--out", str(out), "--device", "cpu",
        "--text" if is_tiny else "--no-text", "--shard-megabytes", str(megabytes), "--batch-pixels", str(area),
    ]  # fmt: skip
    jpegs = [path.read_bytes() for path in (tmp_path / "images").glob("*.jpg")]
    assert len({hashlib.sha256(jpeg).digest() for jpeg in jpegs}) == images
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while _cached(out) < images / 2:
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    cached = _cached(out)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("latents/latents-*.safetensors")}
    assert not (out / "latents" / "cache.json").exists()
    rows = {"continued": _run(command)}
    cache = open_latents(out)
    spans = [last - first for first, last in cache.first_row.values()]
    assert sum(spans) == images
    buckets = sum(span > 0 for span in spans)
    assert buckets > 1 or images < 10
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # what was there is not encoded again
    _check_one(cache, tmp_path / "images", vae)
    if is_tiny:  # for the full size that would take as long again
        rows["uninterrupted"] = _run([word.replace(str(out), str(tmp_path / "whole")) for word in command])
        assert _bytes(out) == _bytes(tmp_path / "whole")
        assert {path.parent.name for path in out.rglob("*.safetensors")} == {"latents", "text"}
        if RECORD in os.environ and images == 200:
            told = {"images": images, "buckets": buckets, "cached_when_killed": cached, "rows": rows}
            timing.write("photographs", told, Path(os.environ[RECORD]))


def _cached(out: Path) -> int:
    """Images in the shards of a cache that may still be written."""
    return sum(
        len(map_shard(path).tensors["sample_ids"]) for path in out.glob("latents/latents-*.safetensors")
    )


def _run(command: list[str]) -> dict[str, float]:
    """Runs a command, which must succeed: its seconds, its processor's seconds, and the most memory it had."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said
    return {
        "seconds": time.monotonic() - began,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * 1024,
    }


def _bytes(cache: Path) -> dict[str, bytes]:
    """Every file of a cache but its manifests, which hold the time of writing."""
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in sorted(cache.rglob("*"))
        if path.suffix == ".safetensors"
    }


def _check_one(cache: LatentCache, images: Path, vae: VAE) -> None:
    """An entry is what the autoencoder makes of the crop that training would see."""
    bucket, (row, _) = next((bucket, span) for bucket, span in cache.first_row.items() if span[1] > span[0])
    latent, _ = cache.entry(row, 0, False)
    assert tuple(latent.shape) == (4, bucket[1] // 8, bucket[0] // 8)
    wanted = int(cache.store.lookup["sample_ids"][row])
    (path,) = (path for path in images.glob("*.jpg") if sample_id(path.stem) == wanted)
    picture, _ = cover_and_crop(decode(path), bucket, VisitDraws(0, False).crop_source(path.stem, 0))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = vae.encode(from_pixels(pixels))[0]
    assert (latent - expected).abs().max() <= NETWORK_FLOAT32 * expected.abs().max()
