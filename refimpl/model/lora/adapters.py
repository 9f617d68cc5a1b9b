"""Low-rank adapters (Hu et al. 2021, "LoRA", §4.1): W x becomes W x + (alpha / rank) · up (down x).

Written here rather than taken from peft: kohya's files give each module its own name, rank and alpha, and adapted
layers that keep the plain layer's keys (`to_q.weight` beside `to_q.lora_down.weight`) need no renaming anywhere.

Target patterns are shell patterns (fnmatch, case-sensitive) on whole module names, in which `*` also crosses dots:
`*.attn2.to_k` is every cross-attention's key projection. Module names are the single file's for the UNet, and
transformers' with the prefix `text_model.` for the text towers, whatever the installed version calls them.
"""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from refimpl.diffusion.philox import draw_key_of, sample_id
from refimpl.errors import InputError
from refimpl.model.lora.config import check_dropout, check_rank_and_alpha
from refimpl.model.lora.layers import LoRAConv2d, LoRALayer, LoRALinear
from refimpl.model.lora.names import nearest_names
from refimpl.storage.key_report import differences, refuse, shapes_of
from refimpl.storage.local_tensors import local, local_like

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"


def add_lora(
    module: nn.Module,
    targets: Iterable[str],
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Adapts, in place, every Linear and Conv2d whose name matches a target; everything else is frozen.

    targets  patterns on module names, see above            rank, alpha  the update is scaled by alpha / rank
    dropout  fraction of the rank's components dropped per image in training, see refimpl.model.lora.dropout
    seed     of the initial values of `down`, which depend on (seed, module name) alone; `up` starts at 0
    returns  the names of the adapted modules, in the module's order
    The adapters' weights are float32 (float64 in a float64 layer) on the layer's device.
    Raises InputError when a target matches nothing (naming the nearest modules), when the rank exceeds the largest
    possible rank of a layer's weight, or when the module already has adapters.
    """
    check_rank_and_alpha(rank, alpha)
    check_dropout(dropout)
    if adapted_layers(module):
        raise InputError("this network has LoRA adapters already; merge them before adding others")
    layers = adaptable_layers(module)
    chosen = match_targets(layers, targets)
    for name in chosen:
        most = min(layers[name].weight.shape[0], layers[name].weight[0].numel())
        if rank > most:
            shape = list(layers[name].weight.shape)
            raise InputError(
                f"LoRA rank {rank} exceeds that of {name}, whose weight {shape} has rank at most {most}; "
                "lower the rank or leave the module out of the targets"
            )
    module.requires_grad_(False)
    for name in chosen:
        _replace(module, name, _adapted(layers[name], rank, alpha, dropout, seed, name))
    return chosen


def adaptable_layers(module: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Every Linear and Conv2d by name, including adapted ones but not their adapters."""
    return {
        name: layer
        for name, layer in _named_modules(module)
        if isinstance(layer, nn.Linear | nn.Conv2d) and not name.endswith((".lora_down", ".lora_up"))
    }


def adapted_layers(module: nn.Module) -> dict[str, LoRALayer]:
    """Every adapted layer by name."""
    return {name: layer for name, layer in _named_modules(module) if isinstance(layer, LoRALayer)}


def match_targets(names: Iterable[str], targets: Iterable[str]) -> list[str]:
    """The names that match any target, in their order. Raises InputError naming a target that matches none."""
    names, targets = list(names), list(targets)
    if not targets:
        raise InputError("LoRA targets are empty; name at least one pattern, such as '*.attn2.to_k'")
    for target in targets:
        if not any(fnmatchcase(name, target) for name in names):
            near = ", ".join(nearest_names(names)(target))
            raise InputError(f"LoRA target {target!r} matches no module; the nearest are {near}")
    return [name for name in names if any(fnmatchcase(name, target) for target in targets)]


def lora_state(module: nn.Module) -> dict[str, Tensor]:
    """Only the adapters: {module}.lora_down.weight, {module}.lora_up.weight and {module}.alpha (float32, [])."""
    state: dict[str, Tensor] = {}
    for name, layer in adapted_layers(module).items():
        state[f"{name}.{DOWN}"] = layer.lora_down.weight.detach()
        state[f"{name}.{UP}"] = layer.lora_up.weight.detach()
        state[f"{name}.{ALPHA}"] = torch.tensor(layer.alpha, dtype=torch.float32)
    return state


@torch.no_grad()
def load_lora_state(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copies a `lora_state` into a network with the same adapters. Raises InputError listing every difference."""
    layers = adapted_layers(module)
    expected = lora_state(module)
    problems = differences(shapes_of(expected), shapes_of(state), nearest_names(expected))
    refuse(
        problems,
        f"{source} does not fit these adapters",
        "Use the rank and the targets that the file was written with.",
    )
    for name, layer in layers.items():
        for weight, key in ((layer.lora_down.weight, DOWN), (layer.lora_up.weight, UP)):
            local(weight).copy_(local_like(weight, state[f"{name}.{key}"]))
        layer.alpha = float(state[f"{name}.{ALPHA}"])


@torch.no_grad()
def merge_lora(module: nn.Module) -> None:
    """Merges every adapter into its layer's weight and removes it, so the state dict has the plain keys again.

    W + (alpha / rank) · up · down is computed in float32 or wider, then rounded once to W's dtype.
    """
    for name, layer in adapted_layers(module).items():
        down, up = layer.lora_down.weight, layer.lora_up.weight
        layer.weight.copy_(merged_weight(layer.weight, down, up, layer.alpha))
        _replace(module, name, layer.plain())


def merged_weight(weight: Tensor, down: Tensor, up: Tensor, alpha: float, strength: float = 1.0) -> Tensor:
    """W + strength · (alpha / rank) · up · down, computed in float32 or wider, in W's dtype.

    weight  [out, in] or [out, in, kh, kw]; down [rank, in(, kh, kw)]; up [out, rank(, 1, 1)]
    """
    wide = torch.promote_types(torch.promote_types(weight.dtype, down.dtype), torch.float32)
    rank = down.shape[0]
    update = up.flatten(1).to(wide) @ down.flatten(1).to(wide)
    return (weight.to(wide) + (strength * alpha / rank) * update.view_as(weight)).to(weight.dtype)


def _adapted(
    base: nn.Linear | nn.Conv2d, rank: int, alpha: float, dropout: float, seed: int, name: str
) -> LoRALayer:
    if isinstance(base, nn.Linear):
        layer = LoRALinear(base, rank, alpha, dropout)
    else:
        layer = LoRAConv2d(base, rank, alpha, dropout)
    low, high = draw_key_of(seed, sample_id(name), 0, 0)
    generator = torch.Generator().manual_seed(high << 32 | low)
    down = layer.lora_down.weight
    with torch.no_grad():
        if not down.is_meta:  # a network without memory has no values to draw
            bound = down[0].numel() ** -0.5  # Kaiming uniform with a = √5, as a new Linear has it
            draw = torch.empty(down.shape, dtype=torch.float32)
            down.copy_(draw.uniform_(-bound, bound, generator=generator))
        nn.init.zeros_(layer.lora_up.weight)
    return layer


def _named_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    # transformers 5.6 dropped the outer `text_model` of CLIP-L; files and patterns keep the name that includes it.
    bare_tower = isinstance(module, CLIPTextModel) and not hasattr(module, "text_model")
    for name, child in module.named_modules():
        yield (f"text_model.{name}" if bare_tower else name), child


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    if isinstance(module, CLIPTextModel) and not hasattr(module, "text_model"):
        name = name.removeprefix("text_model.")
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, layer)
