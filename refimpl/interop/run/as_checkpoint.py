"""A run's checkpoint as a `Checkpoint`, from which other tools' files are written tensor by tensor.

Tensors are memory-mapped from the run's files. What lies in pieces is joined, and a weight with its adapter merged,
when it is used: no network is built, and of a checkpoint of any size one tensor at a time is in memory.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from refimpl.interop.checkpoint import Checkpoint, Prediction
from refimpl.interop.diffusers_folder.components import read_tower
from refimpl.interop.network.architecture import Architecture, noted
from refimpl.interop.run.base import base_state, check_base
from refimpl.interop.run.run_folder import AUTOENCODER, Found, read_run, state_number
from refimpl.interop.run.trained_parts import add_adapters
from refimpl.interop.single_file.layout import unet_shapes, vae_shapes
from refimpl.latents.scale_shift import ScaleShift
from refimpl.model.lora.adapters import ALPHA, DOWN, UP, lora_state, merged_weight
from refimpl.model.unet import UNet
from refimpl.storage import committed, safetensors_file
from refimpl.storage.key_report import check_state, shapes_of
from refimpl.storage.streaming import Deferred
from refimpl.text.config import TextConfig
from refimpl.text.tokenizer import Tokenizer, load_tokenizer

State = Mapping[str, Tensor]


class Beside(NamedTuple):
    """What a run has beside the tensors of a `Checkpoint`."""

    tokenizer: Tokenizer
    text: TextConfig
    folder: Path
    """Its checkpoints/step-* folder that was read."""


def load(path: Path | str, weights: str = "ema") -> tuple[Checkpoint, Beside]:
    """A run's newest checkpoint, or that of a checkpoints/step-* folder, and what belongs to it.

    weights  "ema", the moving average, or "unet", the weights as trained
    Raises InputError when something is missing, damaged, or does not fit, listing every tensor that differs.
    """
    found = read_run(Path(path), weights)
    components = found.run / "components"
    committed.verify(components)
    vae = safetensors_file.read(components / AUTOENCODER)[0]
    check_state(dict(vae_shapes(found.vae)), vae, str(components / AUTOENCODER))
    text_l, config_l = _tower(found, "text_l") if found.text.has_l else (None, None)
    text_g, config_g = _tower(found, "text_g")
    step = state_number(found.folder, found.documents, "step")
    checkpoint = Checkpoint(
        unet=_unet(found),
        vae=vae,
        text_l=text_l,
        text_g=text_g,
        prediction=Prediction(
            found.diffusion.parameterisation,
            found.diffusion.zero_terminal_snr,
            f"the run's configuration, step {step}, weights {weights}",
        ),
        scale_shift=ScaleShift.from_json((components / "scale_shift.json").read_text(encoding="utf-8")),
        metadata=noted({}, Architecture(found.unet, found.vae, config_l, config_g)),
    )
    return checkpoint, Beside(load_tokenizer(components / "tokenizer"), found.text, found.folder.resolve())


def _unet(found: Found) -> State:
    if found.lora.rank:
        check_base(found.run, found.folder, found.documents["state"])
        base = base_state(found.run)
        check_state(dict(unet_shapes(found.unet)), base, f"the base of {found.run}")
        with torch.device("meta"):
            network = UNet(found.unet)
        return _trained(found, "unet", base, network)
    return _trained(found, "unet", dict(unet_shapes(found.unet)), None)


def _tower(found: Found, part: str) -> tuple[State, CLIPTextConfig]:
    folder = found.run / "components" / {"text_l": "text_encoder", "text_g": "text_encoder_2"}[part]
    frozen, config, _ = read_tower(folder, None, projected=part == "text_g")
    if part not in found.states:
        return frozen, config
    if not found.lora.rank:
        return _trained(found, part, shapes_of(frozen), None), config
    with torch.device("meta"):
        network = CLIPTextModel(config) if part == "text_l" else CLIPTextModelWithProjection(config)
    return _trained(found, part, frozen, network), config


def _trained(found: Found, part: str, begun: Mapping, network: nn.Module | None) -> State:
    """The tensors that a checkpoint holds of a part; those of `begun` with the adapters merged, if it trains these.

    begun    the tensors before training; without a network, their shapes are enough
    network  the part on the meta device, where the run trains adapters
    """
    if part not in found.states:
        return begun
    state, source = found.states[part], found.source(part)
    if network is None:
        check_state(begun, state, source)
        return state
    add_adapters(part, network, found.lora)
    check_state(shapes_of(lora_state(network)), state, source)
    merged = dict(begun)
    for key in state:
        if key.endswith(f".{DOWN}"):
            module = key.removesuffix(f".{DOWN}")
            name, weight = f"{module}.weight", merged[f"{module}.weight"]
            adapter = [state[f"{module}.{slot}"] for slot in (DOWN, UP, ALPHA)]
            merged[name] = Deferred(weight.shape, weight.dtype, partial(_merged, weight, *adapter))
    return merged


def _merged(weight: Tensor, down: Tensor, up: Tensor, alpha: Tensor) -> Tensor:
    return merged_weight(weight.detach(), down.detach(), up.detach(), float(alpha))
