"""Photographs cached at SDXL's sizes through the autoencoder's full shape: killed, and continued by the same command.

REFIMPL_CACHED_IMAGES sets how many, 200 unless it is given: a megapixel takes a core about a minute and a half.
"""

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
from tests.tolerances import NETWORK_FLOAT32

IMAGES = int(os.environ.get("REFIMPL_CACHED_IMAGES", "200"))
PATIENCE = 3600  # s until the first shard, on a slow core
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
            (folder / f"{number:03d}.txt").write_text("a photograph")
            number += 1
            if number == count:
                return


FULL = "[buckets]\npreset = 'sdxl'\n"
SMALL = """[buckets]
max_area = 4096
max_side = 128
min_side = 32
step = 8
[vae]
channels = 8
channel_mult = [1, 2, 4, 8]
res_blocks = 1
groups = 2
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "area", "vae_config", "settings"),
    [
        pytest.param(40, 4096, VAEConfig.tiny(), SMALL, id="the same, small"),
        pytest.param(IMAGES, 1024 * 1024, VAEConfig.sdxl(), FULL, id="full size"),
    ],
)
def test_photographs_are_cached_by_a_run_that_was_killed(
    images: int, area: int, vae_config: VAEConfig, settings: str, tmp_path: Path
) -> None:
    write_photographs(tmp_path / "images", images, area)
    vae = random_vae(vae_config)
    safetensors_file.write(tmp_path / "vae.safetensors", vae.state_dict())
    (tmp_path / "config.toml").write_text(
        f"[data]\nfolder = '{tmp_path}/images'\n{settings}[latents]\nweights = '{tmp_path}/vae.safetensors'\n"
    )
    out = tmp_path / "cache"
    command = [
        sys.executable, "-c", PROGRAM, "cache", str(tmp_path / "config.toml"), "--out", str(out), "--device", "cpu",
        "--no-text", "--shard-megabytes", str(area / 2**21), "--batch-pixels", str(area),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while not list(out.glob("latents/latents-*.safetensors")):
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in out.glob("latents/latents-*.safetensors")}
    assert kept
    assert not (out / "latents" / "cache.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    cache = open_latents(out)
    assert sum(last - first for first, last in cache.first_row.values()) == images
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # what was there is not encoded again
    _check_one(cache, tmp_path / "images", vae)


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
