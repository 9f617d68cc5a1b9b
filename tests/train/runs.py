"""Data and settings of runs small enough to repeat dozens of times."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from refimpl.interop.run.checkpoints import step_folder
from refimpl.latents.vae import VAE, VAEConfig
from refimpl.run.config import Config
from refimpl.run.world import World
from refimpl.storage import committed
from refimpl.tables import from_table
from refimpl.train.loop import train
from refimpl.train.setup.out_folder import run_folder
from refimpl.train.setup.prepare import prepare
from refimpl.train.setup.resumed import settled

ALONE = World(0, 1, torch.device("cpu"))

SIZES = ((64, 32), (32, 64), (48, 48), (40, 56))  # (width, height): several buckets in use
WORDS = ("red", "blue", "green", "circle", "square", "dark")
TIMES = ("images_per_second", "loader_stall", "peak_memory")  # entries of a row that no two runs share

BUCKETS = {"max_area": 2304, "max_side": 64, "min_side": 32, "step": 16}
VAE_TABLE = {"channels": 4, "channel_mult": [1, 1, 1, 1], "res_blocks": 1, "groups": 2}
UNET_TABLE = {
    "channels": 8, "channel_mult": [1, 2], "transformer_depth": [0, 1], "middle_depth": 1, "res_blocks": 1,
    "head_dim": 8, "context_dim": 96, "vector_dim": 1600, "groups": 4,
}  # fmt: skip


def write_images(folder: Path, count: int, seed: int = 0) -> Path:
    """PNG images of SIZES in turn, each a gradient of its own, with tags in a .txt beside it."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        first, second = (bytes(draw.randrange(256) for _ in range(3)) for _ in range(2))
        image = Image.frombytes("RGB", (2, 1), first + second)
        image = image.resize(SIZES[number % len(SIZES)], Image.Resampling.BILINEAR)
        image.save(folder / f"{number:03d}.png")
        tags = draw.sample(WORDS, 2)
        (folder / f"{number:03d}.txt").write_text(f"colour:{tags[0]}, {tags[1]}", encoding="utf-8")
    return folder


def write_autoencoder(path: Path) -> Path:
    """A random autoencoder of VAE_TABLE as safetensors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = VAE(from_table(VAEConfig, VAE_TABLE, "test"))
    save_file({name: value.contiguous() for name, value in vae.state_dict().items()}, str(path))
    return path


def write_image_tower(folder: Path) -> Path:
    """A random tiny image tower that embeds in the tiny towers' 64 channels, as transformers writes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = CLIPVisionConfig(**sizes, projection_dim=64, image_size=16, patch_size=8)
        tower = CLIPVisionModelWithProjection(config)
        for parameter in tower.parameters():  # transformers' 0.02 would embed all images alike
            parameter.data.normal_()
    tower.save_pretrained(str(folder))
    return folder


def table(root: Path, out: Path, /, **sections: Any) -> dict[str, Any]:
    """Settings of a run of 4 steps on the images in root/train, each section changed by the one given.

    root  folder with train/, heldout/ and autoencoder.safetensors
    """
    base: dict[str, Any] = {
        "data": {"folder": str(root / "train"), "tag_classes": ["colour"]},
        "buckets": BUCKETS,
        "vae": VAE_TABLE,
        "latents": {"weights": str(root / "autoencoder.safetensors"), "scale_shift": "sdxl"},
        "text": {"towers": "tiny"},
        "unet": UNET_TABLE,
        "diffusion": {"loss_weight": "snr_plus_one"},
        "optimizer": {"learning_rate": 1e-2},
        "train": {
            "out": str(out), "steps": 4, "batch_size": 4, "log_every": 1, "checkpoint_every": 2, "device": "cpu",
            "validate_every": 2, "ema_decay": 0.9,
        },
        "sample": {"prompts": ["red circle"], "seeds": 1, "steps": 2, "width": 32, "height": 32},
    }  # fmt: skip
    for name, changes in sections.items():
        base[name] = {**base.get(name, {}), **changes} if isinstance(changes, dict) else changes
    return base


def config(root: Path, out: Path, /, **sections: Any) -> Config:
    """`table` as a Config."""
    return from_table(Config, table(root, out, **sections), "test")


def write_toml(root: Path, path: Path, out: Path, /, **sections: Any) -> str:
    """`table` as a TOML file; returns its path."""
    lines = []
    for name, entries in table(root, out, **sections).items():
        if isinstance(entries, list):  # stages: tables in a list, each an inline table here
            lines.insert(0, f"{name} = {_toml(entries)}")
        else:
            lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in entries.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(entry)}" for key, entry in value.items()) + "}"
    return "[" + ", ".join(map(_toml, value)) + "]" if isinstance(value, list) else json.dumps(value)


def go(settings: Config) -> Path:
    """What the command does on one process: run folder, preparation, loop. Returns the run folder."""
    settings = settled(settings, ALONE)
    folder = run_folder(settings, "test", ALONE)
    train(settings, folder, prepare(settings, folder, ALONE), ALONE)
    return folder


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without the entries that tell the time."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def checkpoint(run: Path, step: int) -> dict[str, dict[str, torch.Tensor]]:
    """Every tensor of a run's checkpoint, by state, however many ranks wrote it."""
    return committed.read(step_folder(run, step)).tensors


def differing(a: dict[str, dict[str, torch.Tensor]], b: dict[str, dict[str, torch.Tensor]]) -> list[str]:
    """Names of the tensors that are not bit for bit the same in both."""
    names = {(file, key) for state in (a, b) for file in state for key in state[file]}
    return sorted(
        f"{file}/{key}"
        for file, key in names
        if not (key in a.get(file, {}) and key in b.get(file, {}) and torch.equal(a[file][key], b[file][key]))
    )


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest difference between two states with the same names."""
    assert sorted(a) == sorted(b)
    return max(float((a[name] - b[name]).abs().max()) for name in a)
