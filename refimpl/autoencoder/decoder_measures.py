"""What decoder finetuning is measured by, and the images that it leaves out because they are degraded (N §4.4)."""

import contextlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refimpl.autoencoder.training import centre_crops
from refimpl.data.images.decode import BadImage, decode
from refimpl.data.index.data_set import Index
from refimpl.latents.image_quality import JPEG_BLOCK, blockiness, psnr, ssim
from refimpl.latents.vae import VAE
from refimpl.progress import shown
from refimpl.run.shared_work import shared_out
from refimpl.run.world import World

MEASURED_BATCH = 8
Rows = npt.NDArray[np.integer]


@torch.no_grad()
def measure_decoder(
    vae: VAE, index: Index, size: int, world: World, bad: list[BadImage] | None = None
) -> dict[str, float]:
    """Means over the centre crops of all images: PSNR (dB), SSIM, and blockiness of the restored and the originals.

    size   side of the square crops, px. Restored images are clamped to −1..1 before they are compared.
    world  the ranks, which share the images out; every rank calls it, and gets the same
    bad    receives the images that cannot be read, which are left out; without it, such an image is an error
    """
    rows = [
        np.arange(first, min(first + MEASURED_BATCH, len(index)))
        for first in range(0, len(index), MEASURED_BATCH)
    ]

    def measured(batch: Rows) -> list[Tensor]:
        images = _readable_crops(index, size, batch, bad).to(world.device)
        restored = vae.decode(vae.encode(images)).clamp(-1, 1) if len(images) else images
        values = psnr(restored, images), ssim(restored, images), blockiness(restored), blockiness(images)
        return [value.cpu() for value in values] if len(images) else [torch.empty(0)] * 4

    names = ("psnr", "ssim", "blockiness", "blockiness of the originals")
    columns = zip(*shared_out(world, rows, measured), strict=True)
    return {name: torch.cat(parts).mean().item() for name, parts in zip(names, columns, strict=True)}


def _readable_crops(index: Index, size: int, rows: Rows, bad: list[BadImage] | None) -> Tensor:
    """The centre crops [B, 3, size, size] of those of the images that can be read."""
    try:
        return next(centre_crops(index, [((size, size), rows)]))
    except BadImage as error:
        if bad is None:
            raise
        if len(rows) == 1:
            bad.append(error)
            return torch.empty(0, 3, size, size)
        return torch.cat([_readable_crops(index, size, rows[i : i + 1], bad) for i in range(len(rows))])


def without_jpeg_blocks(index: Index, limit: float, world: World) -> tuple[Index, dict[str, float]]:
    """The images whose unscaled pixels have a blockiness of at most `limit`; and id → blockiness of the others.

    world  the ranks, which share the images out; every rank calls it, and gets the same
    Images that are too small to contain a block boundary, or that cannot be read, are kept and left to the loader.
    """
    rows: Sequence[int] = range(len(index))
    mine = iter(
        shown(rows[world.rank :: world.size], len(rows[world.rank :: world.size]), "blocks of JPEG", "images")
    )

    def measured(row: int) -> float:
        next(mine, None)  # for the progress shown
        with contextlib.suppress(BadImage):
            image = decode(index.paths[row])
            if min(image.size) > JPEG_BLOCK:
                pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
                pixels = pixels.view(1, image.height, image.width, 3).permute(0, 3, 1, 2)
                return blockiness(pixels.float()).item()
        return 0.0

    values = shared_out(world, rows, measured)
    found = {index.ids[row]: value for row, value in enumerate(values) if value > limit}
    return index.take([row for row, value in enumerate(values) if value <= limit]), found
