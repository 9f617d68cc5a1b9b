"""Small autoencoders and the pictures that they learn, kept by their settings."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from refimpl.autoencoder.training import train_autoencoder
from refimpl.data.demo.drawings import draw, kinds
from refimpl.data.index.data_set import Index, read_folder
from refimpl.errors import InputError
from refimpl.latents.config import LatentConfig, VAEConfig
from refimpl.latents.vae import VAE
from refimpl.run.world import World
from refimpl.storage.atomic import renamed_folder
from refimpl.storage.safetensors_file import read, write

VERSION = 1  # of the pictures and the training: what another version has made is not reused
SIDE = 64  # px
SHAPE = VAEConfig.tiny()
TRAIN, HELD_OUT = 160, 40  # pictures
NOISE = 8.0  # deviation in levels of the grain that makes flat areas no easier than photographs
ALONE = World(0, 1, torch.device("cpu"))


def picture_folder(seed: int, folder: Path, jpeg_quality: int | None = None) -> Path:
    """The folder with the pictures of a seed, below which are train/ and heldout/; made if it is not there.

    jpeg_quality  of the JPEG compression that the pictures have been through; None leaves them clean
    """
    name = f"pictures-{VERSION}-{seed}" + ("" if jpeg_quality is None else f"-jpeg{jpeg_quality}")
    path = folder / name
    if path.is_dir():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with renamed_folder(path) as partial:
            _write(partial, seed, jpeg_quality)
    except InputError:
        if not path.is_dir():  # where it is, another process was first
            raise
    return path


def pictures_of(path: Path, split: str) -> Index:
    """The pictures of a folder that are for training ("train") or for measuring ("heldout")."""
    return read_folder(str(path / split))


def trained_autoencoder(
    pictures: Path, config: LatentConfig, seed: int, ema_decay: float, folder: Path
) -> VAE:
    """An autoencoder of the training pictures, frozen: read from `folder` where one was left, else trained."""
    content = {
        "pictures": pictures.name,
        "held": [TRAIN, HELD_OUT, SIDE],
        "shape": asdict(SHAPE),
        "config": asdict(config),
        "seed": seed,
        "ema_decay": ema_decay,
    }
    path = folder / f"autoencoder-{digest(content)}.safetensors"
    if path.is_file():
        vae = VAE(SHAPE)
        vae.load_state_dict(read(path)[0])
        return vae.eval().requires_grad_(False)
    vae = train_autoencoder(pictures_of(pictures, "train"), SHAPE, config, seed, ALONE.device, ema_decay)
    write(path, dict(vae.state_dict()))
    return vae


def digest(content: object) -> str:
    """16 hexadecimal digits that name what is a function of `content`."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _write(folder: Path, seed: int, jpeg_quality: int | None) -> None:
    rng = np.random.default_rng([VERSION, seed])
    for number, (kind, place) in enumerate(kinds(TRAIN + HELD_OUT)):
        split = folder / ("train" if number < TRAIN else "heldout")
        split.mkdir(exist_ok=True)
        drawing, caption = draw(kind, place, seed)
        pixels = np.asarray(drawing.resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float64)
        grain = rng.normal(0, NOISE, pixels.shape)
        picture = Image.fromarray((pixels + grain).round().clip(0, 255).astype(np.uint8))
        name = split / f"{number:04d}"
        if jpeg_quality is None:
            picture.save(name.with_suffix(".png"))
        else:
            picture.save(name.with_suffix(".jpg"), quality=jpeg_quality)
        name.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
