"""How trainers name the tensors of a LoRA, resolved against the modules that the networks actually have.

kohya   lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight, .lora_up.weight, .alpha;
        lora_te1_text_model_… (CLIP-L), lora_te2_text_model_… (bigG);
        with diffusers' module names too: lora_unet_down_blocks_1_attentions_0_…
PEFT    unet.down_blocks.1.attentions.0.….lora_A.weight, .lora_B.weight; text_encoder.…, text_encoder_2.…;
        base_model.model.… if a single network was wrapped
LyCORIS's LoHa and LoKr have kohya's names of modules, and tensors of their own (`refimpl.interop.lora.lycoris`).

An underscore may mean a dot or itself, so the spellings of every module are listed and looked up, never parsed.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from refimpl.errors import InputError
from refimpl.interop.diffusers_folder.unet_keys import unet_modules
from refimpl.interop.lora.lycoris import LOHA, LOKR, MAGNITUDE, SLOTS
from refimpl.interop.network.architecture import Architecture
from refimpl.interop.network.renaming import renamed_keys
from refimpl.model.lora.adapters import ALPHA, DOWN, UP, adaptable_layers
from refimpl.model.unet import UNet

KOHYA_PREFIXES = {"unet": "lora_unet_", "text_l": "lora_te1_", "text_g": "lora_te2_"}
PEFT_PREFIXES = {"unet": ("unet.", ""), "text_l": ("text_encoder.", ""), "text_g": ("text_encoder_2.", "")}
WRAPPED = "base_model.model."  # what PEFT puts before the names of a network it has wrapped

TENSOR = re.compile(
    r"(?P<module>.+?)\.(?:(?P<down>lora_down|lora_A(?:\.\w+)?)\.weight|(?P<up>lora_up|lora_B(?:\.\w+)?)\.weight|alpha"
    rf"|(?P<lycoris>{'|'.join(SLOTS)}))",
    re.DOTALL,
)

# Adapters other than LoRA, LoHa and LoKr, by what only their keys contain.
OTHER_KINDS = {
    "DoRA": r"\.dora_scale|\.lora_magnitude_vector",
    "IA3": r"\.ia3_|\.on_input$",
    "OFT": r"\.oft_|\.boft_",
    "LoCon with a Tucker core": r"\.lora_mid\.",
    "VeRA": r"\.vera_",
    "GLoRA": r"\.[ab][12]\.weight$",
    "full difference": r"\.diff(_b)?$",
    "adapter of norms": r"\.[wb]_norm$",
    "LoRA of biases": r"\.lora_B\.bias$|\.lora_up\.bias$",
    "LoRA of embeddings": r"lora_embedding_",
}

# Other networks that a LoRA may be for, by what only their keys contain.
OTHER_NETWORKS = {
    "FLUX": r"double_blocks|single_blocks|single_transformer_blocks",
    "Stable Diffusion 3": r"joint_blocks|context_block",
    "Stable Diffusion 1 or 2": r"lora_te_|input_blocks_1_1_|down_blocks_0_attentions|down_blocks\.0\.attentions",
}


@dataclass(frozen=True)
class Place:
    """One module that can be adapted."""

    part: str
    """unet, text_l or text_g"""
    module: str
    """name of the module in that network"""
    shape: tuple[int, ...]
    """shape of its weight: [out, in] or [out, in, kh, kw]"""


class Spelled(NamedTuple):
    """A key split into the module's name in the file, and which of DOWN, UP, ALPHA and LyCORIS's SLOTS it is."""

    module: str
    slot: str


def spell(part: str, module: str) -> str:
    """kohya's name of a module, before the `.lora_down.weight`."""
    return KOHYA_PREFIXES[part] + module.replace(".", "_")


def places(architecture: Architecture) -> list[Place]:
    """Every module of the networks that can be adapted."""
    with torch.device("meta"):
        networks = {
            "unet": architecture.unet and UNet(architecture.unet),
            "text_l": architecture.text_l and CLIPTextModel(architecture.text_l),
            "text_g": architecture.text_g and CLIPTextModelWithProjection(architecture.text_g),
        }
    return [
        Place(part, name, tuple(layer.weight.shape))
        for part, network in networks.items()
        if network is not None
        for name, layer in adaptable_layers(network).items()
    ]


def spellings(architecture: Architecture) -> dict[str, list[Place]]:
    """Every spelling of every module → what it can mean: one place, or the same module in both text towers."""
    meanings: dict[str, list[Place]] = {}
    known = places(architecture)
    unet_names = [place.module for place in known if place.part == "unet"]
    theirs = renamed_keys(unet_names, unet_modules(architecture.unet), "UNet") if architecture.unet else {}
    for place in known:
        bare = place.module.removeprefix("text_model.")  # transformers ≥ 5.6 has CLIP-L without the prefix
        names = {place.module, theirs[place.module] if place.part == "unet" else bare}
        for name in sorted(names):
            spelled = [spell(place.part, name), *(prefix + name for prefix in PEFT_PREFIXES[place.part])]
            for spelling in spelled:
                meanings.setdefault(spelling, []).append(place)
    return meanings


def take_apart(key: str) -> Spelled | None:
    """The module and the slot that a key names; None if it is not a tensor of a LoRA."""
    found = TENSOR.fullmatch(key)
    if not found:
        return None
    slot = DOWN if found["down"] else UP if found["up"] else found["lycoris"] or ALPHA
    return Spelled(found["module"].removeprefix(WRAPPED), slot)


def check_kind(keys: Iterable[str], source: str) -> None:
    """Raise InputError, naming the kind, if a file holds an adapter other than LoRA, LoHa and LoKr."""
    keys = list(keys)
    lycoris = {key.rpartition(".")[0] for key in keys if key.endswith((*LOHA, *LOKR))}
    for key in keys:
        module, _, slot = key.rpartition(".")
        if slot == MAGNITUDE and module in lycoris:
            continue
        for kind, pattern in OTHER_KINDS.items():
            if re.search(pattern, key):
                raise InputError(
                    f"{source} holds {kind}: tensor {key[:200]}; only plain LoRA is read, a down and an up "
                    "matrix per module, and LyCORIS's LoHa and LoKr. Merge it into its base with the tool that made "
                    "it, and use the result."
                )


def other_network(keys: Iterable[str]) -> str:
    """The network family that the keys belong to, if it is known and not SDXL; else empty."""
    text = "\n".join(keys)
    return next((name for name, pattern in OTHER_NETWORKS.items() if re.search(pattern, text)), "")
