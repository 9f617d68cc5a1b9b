"""A folder with small files under the names that the documentation uses, in which its commands run."""

import json
import tarfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from refimpl.commands.start.toml_text import toml_value
from refimpl.interop import single_file
from refimpl.interop.checkpoint import Checkpoint
from refimpl.interop.lora import files as lora
from refimpl.interop.lora.files import LoRAFile
from refimpl.interop.network.architecture import Architecture, noted, with_text_model
from refimpl.latents.config import VAEConfig
from refimpl.latents.vae import VAE
from refimpl.model.config import UNetConfig
from refimpl.model.lora.adapters import add_lora, lora_state
from refimpl.model.lora.config import ATTENTION_TARGETS
from refimpl.model.unet import UNet
from refimpl.tables import from_table
from refimpl.text.encoders import tiny_configs, tiny_encoders
from refimpl.text.tiny_vocabulary import write_tiny_vocabulary
from tests.train import runs

ADAPTER = """
class Adapter:
    name = "mytrainer"

    def size_ints(self, original, crop, target):
        (width, height), (top, left), (across, down) = original, crop, target
        return [height, width, top, left, down, across]
"""
KOHYA = """
pretrained_model_name_or_path = "model.safetensors"
train_data_dir = "my-images"
network_module = "networks.lora"
network_dim = 2
max_train_steps = 2
resolution = 64
enable_bucket = true
min_bucket_reso = 32
bucket_reso_steps = 8
"""
ONETRAINER = {
    "training_method": "LORA",
    "base_model_name": "model.safetensors",
    "concepts": [{"path": "my-images"}],
    "epochs": 1,
}
PIXELS = {"max_area": 2304, "max_side": 64, "min_side": 32, "step": 8}


UNET = from_table(UNetConfig, runs.UNET_TABLE, "scene")
AUTOENCODER = from_table(VAEConfig, runs.VAE_TABLE, "scene")
ARCHITECTURE = Architecture(UNET, AUTOENCODER, *tiny_configs())


def prepare(folder: Path) -> None:
    """Images, an autoencoder, a checkpoint, vocabulary, towers, and configurations of other trainers."""
    images = runs.write_images(folder / "my-images", 18)
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards" / "00.tar", "w") as tar:
        for path in sorted(images.iterdir())[:4]:
            tar.add(path, f"shard-{path.name}")
    runs.write_images(folder / "demo-data" / "train", 8)  # as the preset `tiny` would draw them, but few
    runs.write_images(folder / "demo-data" / "heldout", 2, seed=1)
    runs.write_images(folder / "data" / "images", 8)  # where the presets expect a user's own
    start = checkpoint()
    assert start.vae is not None
    single_file.save(start, folder / "model.safetensors")
    lora.save(adapters(start), folder / "lora.safetensors")
    (folder / "sdxl" / "vae").mkdir(parents=True)
    for path in (folder / "vae.safetensors", folder / "sdxl" / "vae" / "autoencoder.safetensors"):
        save_file(
            dict(start.vae), str(path), noted({}, replace(ARCHITECTURE, unet=None, text_l=None, text_g=None))
        )
    (folder / "clip").mkdir()
    write_tiny_vocabulary(folder / "clip")
    (folder / "mytrainer").mkdir()
    (folder / "mytrainer" / "__init__.py").touch()
    (folder / "mytrainer" / "adapter.py").write_text(ADAPTER, encoding="utf-8")
    (folder / "known.toml").touch()
    (folder / "kohya.toml").write_text(KOHYA, encoding="utf-8")
    (folder / "onetrainer.json").write_text(json.dumps(ONETRAINER), encoding="utf-8")


def checkpoint() -> Checkpoint:
    """An eps checkpoint of the networks that `small` names, with random weights."""
    torch.manual_seed(0)
    unet = UNet(UNET).state_dict()
    vae = {name: value.contiguous() for name, value in VAE(AUTOENCODER).state_dict().items()}
    text_l, text_g = (
        {with_text_model(key): value for key, value in tower.state_dict().items()}
        for tower in tiny_encoders(0)
    )
    return Checkpoint(unet=unet, vae=vae, text_l=text_l, text_g=text_g, metadata=noted({}, ARCHITECTURE))


def adapters(start: Checkpoint) -> LoRAFile:
    """A LoRA of the checkpoint's UNet that changes nothing yet."""
    unet = UNet(UNET)
    unet.load_state_dict(start.unet or {})
    add_lora(unet, ATTENTION_TARGETS, rank=2, alpha=2.0)
    return LoRAFile(unet=lora_state(unet))


@contextmanager
def small_presets(folder: Path) -> Iterator[None]:
    """Presets of the same names in place of those that ship: their settings, on small networks and pictures."""
    configs = folder / "configs"
    if not configs.is_dir():
        configs.mkdir(parents=True)
        for path in (resources.files("refimpl") / "configs").iterdir():
            if path.name.endswith(".toml"):
                table = small(tomllib.loads(path.read_text(encoding="utf-8")))
                (configs / path.name).write_text(as_toml(table), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refimpl.run.presets.resources", SimpleNamespace(files=lambda package: folder))
        yield


def small(table: dict[str, Any]) -> dict[str, Any]:
    """A preset's table with small networks and pictures and few steps; what else it says stays."""
    towers = table["text"].get("towers", "sdxl")
    is_refiner = towers in ("bigg", "tiny_bigg")
    text = {**table["text"], "towers": "tiny_bigg" if is_refiner else "tiny"}
    own_context = {"context_dim": 64, "vector_dim": 64 + 5 * 256} if is_refiner else {}
    unet = {**runs.UNET_TABLE, **own_context}
    sample = {**table.get("sample", {}), "width": 64, "height": 64, "steps": 2, "seeds": 1}
    train = {**table["train"], "steps": 2, "batch_size": 2, "device": "cpu", "precision": "fp32"}
    data = {**table["data"], "workers": 0}
    latents = {**table.get("latents", {}), **({"train_steps": 1} if data.get("demo") else {})}
    own = {"buckets": PIXELS, "vae": runs.VAE_TABLE, "unet": unet, "text": text, "sample": sample}
    return {**table, **own, "train": train, "data": data, "latents": latents}


def as_toml(table: dict[str, Any]) -> str:
    """The table as a TOML file."""
    lines = []
    for name, entries in table.items():
        for section in entries if isinstance(entries, list) else [entries]:
            lines.append(f"[[{name}]]" if isinstance(entries, list) else f"[{name}]")
            lines += [
                f"{key} = {toml_value(value)}"
                for key, value in section.items()
                if not isinstance(value, dict)
            ]
            for key, value in section.items():
                if isinstance(value, dict):
                    lines.append(f"[{name}.{key}]")
                    lines += [f"{inner} = {toml_value(entry)}" for inner, entry in value.items()]
    return "\n".join(lines) + "\n"
