"""`refimpl merge-lora`: a LoRA folded into a checkpoint of any format (Hu et al. 2021, §4.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from refimpl.commands.files.output import Output, check_paths, write_opened
from refimpl.commands.terminal import parsed
from refimpl.errors import InputError

if TYPE_CHECKING:
    from refimpl.interop.checkpoint import Checkpoint
    from refimpl.interop.lora.files import LoRAFile


@dataclass(frozen=True, kw_only=True)
class MergeLoRACommand(Output):
    """Folds a LoRA into a checkpoint's weights. The inputs stay as they are; the output must not exist."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A .safetensors file, a diffusers folder or a run."""
    lora: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LORA")]
    """A LoRA from kohya's trainer or PEFT, or a LoHa or LoKr from LyCORIS: its .safetensors file, or a folder with
    adapter_model.safetensors."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """File or folder to write."""
    strength: float = 1.0
    """Factor of the LoRA's update: 1 applies it as trained, less weakens it, negative subtracts it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.strength):
            raise InputError(f"--strength {self.strength} must be finite; 1 is the LoRA as it was trained")


def merge_lora_command(arguments: list[str], program: str = "refimpl merge-lora") -> None:
    """Reads the checkpoint and the LoRA, checks that they fit, merges them and writes the result."""
    command = parsed(MergeLoRACommand, arguments, program)
    if not command.lora.exists():
        raise InputError(f"{command.lora} does not exist; name a LoRA's .safetensors file")
    if command.out.exists() and command.out.samefile(command.lora):
        raise InputError(f"{command.out} is both the LoRA and what would be written; give another name")
    from refimpl.interop import any_checkpoint
    from refimpl.interop.lora import files as lora_files
    from refimpl.interop.lora.merge import by_module, merge_into_checkpoint
    from refimpl.interop.network.architecture import architecture_of

    single = check_paths(command.checkpoint, command.out, command.format)
    opened = any_checkpoint.load(command.checkpoint)
    architecture = architecture_of(opened.checkpoint, str(command.checkpoint))
    lora = lora_files.load(command.lora, architecture)
    merged = merge_into_checkpoint(opened.checkpoint, lora, command.strength, str(command.lora))
    for part, state in lora.parts().items():
        print(f"{part}: {len(by_module(state))} modules merged at {command.strength:g}")
    _note_prediction(lora, opened.checkpoint)
    write_opened(command, opened._replace(checkpoint=merged), command.checkpoint, command.out, single)


def _note_prediction(lora: LoRAFile, checkpoint: Checkpoint) -> None:
    from refimpl.interop.single_file.prediction_markers import MODELSPEC, SPELLINGS

    said = SPELLINGS.get(lora.metadata.get(MODELSPEC, "").lower())
    if said and checkpoint.unet is not None and said != checkpoint.prediction.kind:
        print(
            f"note: the LoRA says it was trained on a checkpoint that predicts {said}; this one predicts "
            f"{checkpoint.prediction.kind}, and does so after merging"
        )
