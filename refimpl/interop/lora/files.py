"""Reading and writing LoRA files of other trainers (Hu et al. 2021, §4.1).

Files are written with kohya's key names, which ComfyUI, A1111, Forge and diffusers all read, and are read with
kohya's and PEFT's (`refimpl.interop.lora.keys`). LyCORIS's LoHa and LoKr are read too, and not written.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from refimpl.errors import InputError
from refimpl.interop.lora.keys import Place, check_kind, other_network, spell, spellings, take_apart
from refimpl.interop.lora.lycoris import SLOTS, fault_of, is_lycoris
from refimpl.interop.lora.lycoris import fits as lycoris_fits
from refimpl.interop.lora.peft_config import read_alphas
from refimpl.interop.network.architecture import Architecture
from refimpl.model.config import UNetConfig
from refimpl.model.lora.adapters import ALPHA, DOWN, UP
from refimpl.model.lora.names import nearest_names
from refimpl.model.pipeline import PARTS
from refimpl.storage import safetensors_file
from refimpl.text.encoders import clip_bigg_config, clip_l_config

MARKERS = ("v_pred", "ztsnr")  # a checkpoint's; some trainers put them into their LoRAs too
FOLDER_FILES = (
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
)  # PEFT's and diffusers' names


@dataclass(frozen=True)
class LoRAFile:
    """The adapters of each network, as `lora_state` returns them, and the file's metadata."""

    unet: Mapping[str, Tensor] = field(default_factory=dict)
    """{module}.lora_down.weight, {module}.lora_up.weight and {module}.alpha, with the UNet's module names; or the
    tensors of a LoHa or LoKr, as `refimpl.interop.lora.lycoris` names them"""
    text_l: Mapping[str, Tensor] = field(default_factory=dict)
    """the same for CLIP-L, with the prefix `text_model.`"""
    text_g: Mapping[str, Tensor] = field(default_factory=dict)
    """the same for bigG"""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """metadata of the safetensors header"""

    def parts(self) -> dict[str, Mapping[str, Tensor]]:
        """Part → its adapters, for the parts that have any."""
        states = {part: getattr(self, part) for part in PARTS}
        return {part: state for part, state in states.items() if state}


def load(path: Path | str, architecture: Architecture | None = None) -> LoRAFile:
    """Read a LoRA, LoHa or LoKr with kohya's or PEFT's key names.

    path          the file, or a folder with one of FOLDER_FILES; PEFT's adapter_config.json is read from beside it
    architecture  shapes of the networks it is for; SDXL's by default
    returns       tensors in their stored dtype; an alpha that is given nowhere equals the rank
    Raises InputError for another kind of adapter, or listing everything that does not fit the networks.
    """
    path = _file_of(Path(path))
    tensors, metadata = safetensors_file.read(path)
    check_kind(tensors, str(path))
    meanings = _sdxl_spellings() if architecture is None else spellings(architecture)
    alphas = read_alphas(path, metadata)
    modules: dict[str, dict[str, Tensor]] = {}
    problems = []
    for key, tensor in tensors.items():
        spelled = take_apart(key)
        if spelled is not None:
            slots = modules.setdefault(spelled.module, {})
            if spelled.slot in slots:
                problems.append(f"repeated  {key}: another key is the same tensor")
            slots[spelled.slot] = tensor
        elif key not in MARKERS:
            problems.append(f"unknown   {key} {list(tensor.shape)}: not a tensor of a LoRA")
    nearest = nearest_names(meanings)
    states: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    places: dict[Place, str] = {}
    for name, slots in modules.items():
        fault = _fault(name, slots, meanings, nearest)
        if fault:
            problems.append(fault)
            continue
        place = next(place for place in meanings[name] if _fits(slots, place.shape))
        if places.setdefault(place, name) != name:
            problems.append(f"repeated  {name}: another name in the file is the same module")
        if is_lycoris(slots):
            states[place.part] |= {f"{place.module}.{slot}": tensor for slot, tensor in slots.items()}
            continue
        down, up = slots[DOWN], slots[UP]
        if ALPHA not in slots:
            slots[ALPHA] = torch.tensor(alphas(name, len(down)), dtype=torch.float32)
        states[place.part] |= {
            f"{place.module}.{DOWN}": down.reshape(-1, *place.shape[1:]),
            f"{place.module}.{UP}": up.reshape(place.shape[0], -1, *(1 for _ in place.shape[2:])),
            f"{place.module}.{ALPHA}": slots[ALPHA],
        }
    if not modules:
        raise InputError(
            f"{path} holds no LoRA: none of its {len(tensors)} tensors is named lora_down or lora_A, nor as "
            "LyCORIS names LoHa's and LoKr's; give another"
        )
    if problems:
        raise InputError(_report(str(path), problems, tensors))
    return LoRAFile(**states, metadata=metadata)


def save(lora: LoRAFile, path: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write a LoRA with kohya's key names; every module has its alpha.

    dtype  dtype of the down and up matrices; by default each keeps its own. Alphas always keep theirs.
    ss_network_dim and ss_network_alpha are added to the metadata if it lacks them.
    Raises InputError when there is nothing to write, or a LoHa or LoKr, when the file exists, or cannot be written.
    """
    tensors, dtypes, ranks, alphas = {}, {}, set(), set()
    for part, state in lora.parts().items():
        for key, tensor in state.items():
            if key.endswith(SLOTS):
                raise InputError(
                    f"{path}: {key} is a LoHa's or LoKr's, and only plain LoRA is written; merge it"
                )
            slot = next(slot for slot in (DOWN, UP, ALPHA) if key.endswith("." + slot))
            name = f"{spell(part, key.removesuffix('.' + slot))}.{slot}"
            tensors[name] = tensor
            if slot == ALPHA:
                alphas.add(float(tensor))
            elif dtype is not None:
                dtypes[name] = dtype
            if slot == DOWN:
                ranks.add(len(tensor))
    if not tensors:
        raise InputError(f"{path}: there are no adapters to write")
    if Path(path).exists():
        raise InputError(f"{path} exists; choose another name")
    sizes = {
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(alphas.pop()) if len(alphas) == 1 else "Dynamic",
    }
    safetensors_file.write(path, tensors, {**sizes, **lora.metadata}, dtypes)


@functools.cache
def _sdxl_spellings() -> dict[str, list[Place]]:
    return spellings(Architecture(UNetConfig.sdxl(), None, clip_l_config(), clip_bigg_config()))


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise InputError(f"{path} holds neither {' nor '.join(FOLDER_FILES)}; give the LoRA's file")


def _fault(
    name: str,
    slots: Mapping[str, Tensor],
    meanings: Mapping[str, list[Place]],
    nearest: Callable[[str], list[str]],
) -> str:
    """What is wrong with one module of a file; empty if nothing is."""
    if name not in meanings:
        return f"unknown   {name}; the nearest are {', '.join(nearest(name)) or 'not listed'}"
    absent = [] if is_lycoris(slots) else [slot for slot in (DOWN, UP) if slot not in slots]
    if absent:
        return f"missing   {name}: the file has no {' and no '.join(absent)} for it"
    for slot, tensor in slots.items():
        if not (tensor.is_floating_point() or (slot == ALPHA and tensor.dtype != torch.bool)):
            return f"unusable  {name}.{slot} is of {tensor.dtype}"
    if ALPHA in slots and not (slots[ALPHA].numel() == 1 and bool(slots[ALPHA].double().isfinite().all())):
        return f"unusable  {name}.{ALPHA} {list(slots[ALPHA].shape)} is not one finite number"
    if is_lycoris(slots):
        fault = fault_of(slots, [place.shape for place in meanings[name]])
        return f"misshapen {name}: {fault}" if fault else ""
    if not any(_fits(slots, place.shape) for place in meanings[name]):
        shapes = " or ".join(str(list(place.shape)) for place in meanings[name])
        have = f"down {list(slots[DOWN].shape)} and up {list(slots[UP].shape)}"
        return f"misshapen {name}: {have} do not fit its weight {shapes}"
    return ""


def _fits(slots: Mapping[str, Tensor], shape: tuple[int, ...]) -> bool:
    """Whether the update has the weight's shape; a Linear's matrices may be stored as 1×1 convolutions."""
    if is_lycoris(slots):
        return lycoris_fits(slots, shape)
    down, up = tuple(slots[DOWN].shape), tuple(slots[UP].shape)
    rank = down[0] if down else 0
    narrow = {shape[1:], (*shape[1:], 1, 1)} if len(shape) == 2 else {shape[1:]}
    return rank > 0 and down[1:] in narrow and up in {(shape[0], rank), (shape[0], rank, 1, 1)}


def _report(path: str, problems: list[str], keys: Mapping[str, Tensor]) -> str:
    network = other_network(keys)
    told = f"It looks like a LoRA for {network}. " if network else ""
    listing = "\n  ".join(problems)
    return (
        f"{path} does not fit this model; {len(problems)} of its entries differ:\n  {listing}\n"
        f"{told}Use a LoRA that was trained for SDXL, or the checkpoint it was trained on."
    )
