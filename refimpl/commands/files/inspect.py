"""`refimpl inspect`: what a checkpoint is, what it predicts and why, without reading its weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from refimpl.commands.terminal import parsed
from refimpl.latents.config import VAEConfig
from refimpl.model.config import UNetConfig
from refimpl.printable import one_line

if TYPE_CHECKING:
    from torch import Tensor

    from refimpl.interop.checkpoint import Checkpoint

PARTS = {"unet": "UNet", "vae": "autoencoder", "text_l": "CLIP-L", "text_g": "bigG", "other": "other"}


@dataclass(frozen=True)
class InspectCommand:
    """Prints what a single file, a diffusers folder or a run holds: parts, sizes, prediction type and why."""

    path: Annotated[Path, tyro.conf.Positional]
    """A .safetensors file, a diffusers folder, a run folder or one of its checkpoints/step-* folders."""
    keep_unknown: bool = False
    """Count tensors that belong to no part as other, instead of refusing the file."""
    as_json: bool = False
    """Print one JSON object instead of text."""


def inspect_command(arguments: list[str], program: str = "refimpl inspect") -> None:
    """Opens what `path` names and describes it."""
    command = parsed(InspectCommand, arguments, program)
    from refimpl.interop import any_checkpoint

    opened = any_checkpoint.load(command.path, keep_unknown=command.keep_unknown)
    facts = describe(opened.checkpoint, str(command.path))
    facts = {"path": str(command.path), "kind": opened.kind, **facts}
    print(json.dumps(facts) if command.as_json else as_text(facts))


def describe(checkpoint: Checkpoint, source: str) -> dict[str, Any]:
    """The facts about a checkpoint, as values that JSON can hold.

    source  the file or folder, for messages      Raises InputError when a part is not shaped like SDXL's.
    """
    from refimpl.interop.network.architecture import METADATA_KEY
    from refimpl.interop.single_file.folded import FOLDED
    from refimpl.interop.single_file.prediction_markers import MARKERS
    from refimpl.interop.single_file.read_write import SCALE_SHIFT
    from refimpl.latents.scale_shift import SDXL_DEFAULT, SDXL_FACTOR

    ours = (METADATA_KEY, SCALE_SHIFT, FOLDED)
    prediction, scale_shift = checkpoint.prediction, checkpoint.scale_shift
    parts = {name: getattr(checkpoint, name) for name in PARTS}
    return {
        "architecture": architecture_name(checkpoint, source),
        "parts": {name: _sizes(part) for name, part in parts.items() if part},
        "prediction": prediction.kind if checkpoint.unet is not None else None,
        "zero_terminal_snr": prediction.zero_terminal_snr,
        "sigma_range": [prediction.sigma_min, prediction.sigma_max],
        "reason": prediction.reason,
        "scale_shift": json.loads(scale_shift.to_json()) if scale_shift != SDXL_DEFAULT else SDXL_FACTOR,
        "folded_scale_shift": checkpoint.metadata.get(FOLDED),
        "markers": [key for key in MARKERS if key in checkpoint.other],
        "metadata": {key: value for key, value in checkpoint.metadata.items() if key not in ours},
    }


def architecture_name(checkpoint: Checkpoint, source: str) -> str:
    """SDXL base, SDXL refiner, this project's tiny model, or how it differs from them."""
    from refimpl.interop.network.architecture import architecture_of
    from refimpl.interop.single_file.read_write import is_refiner

    shapes = architecture_of(checkpoint, source)
    for name, preset in (
        ("SDXL base", UNetConfig.sdxl()),
        ("SDXL refiner", UNetConfig.refiner()),
        ("tiny", UNetConfig.tiny()),
    ):
        if shapes.unet == preset:
            return name
    if shapes.unet is not None:
        kind = "refiner" if is_refiner(checkpoint) else "base"
        return f"of the {kind}'s kind in another size: {shapes.unet}"
    if shapes.vae is not None:
        return "SDXL autoencoder" if shapes.vae == VAEConfig.sdxl() else f"autoencoder: {shapes.vae}"
    return "text towers alone"


def _sizes(part: Mapping[str, Tensor]) -> dict[str, Any]:
    from refimpl.storage.safetensors_file import NAMES

    dtypes = Counter(NAMES.get(tensor.dtype, str(tensor.dtype)) for tensor in part.values())
    return {
        "tensors": len(part),
        "parameters": sum(tensor.numel() for tensor in part.values()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in part.values()),
        "dtypes": dict(dtypes.most_common()),
    }


def as_text(facts: Mapping[str, Any]) -> str:
    """The facts from `describe` as human-readable lines."""
    from refimpl.latents.scale_shift import SDXL_FACTOR

    lines = [f"{facts['path']}: {facts['kind']}, {facts['architecture']}", ""]
    for name, sizes in facts["parts"].items():
        dtypes = ", ".join(sizes["dtypes"])
        lines.append(
            f"  {PARTS[name]:<12} {sizes['tensors']:>6,} tensors {sizes['parameters']:>14,} values "
            f"{sizes['bytes'] / 1e6:>10,.1f} MB  {dtypes}"
        )
    lines.append("")
    if facts["prediction"]:
        end = "ends in pure noise" if facts["zero_terminal_snr"] else "does not end in pure noise"
        lines.append(f"predicts {facts['prediction']}, on a schedule that {end} ({facts['reason']})")
        low, high = facts["sigma_range"]
        if high or low:
            lines.append(
                f"conditioned on σ_edm from {low} to {high}, not on t: this project does not train it"
            )
    if facts["scale_shift"] == SDXL_FACTOR:
        lines.append(f"scale-and-shift: the plain {SDXL_FACTOR}")
    else:
        lines.append(
            f"scale-and-shift: mean {facts['scale_shift']['mean']}, std {facts['scale_shift']['std']}"
        )
    if facts["folded_scale_shift"]:
        lines.append(f"folded into the autoencoder: {facts['folded_scale_shift']}")
    lines.append(f"markers: {', '.join(facts['markers']) or 'none'}")
    lines += [f"  {one_line(key)}: {one_line(value)}" for key, value in sorted(facts["metadata"].items())]
    return "\n".join(lines)
