"""`refimpl export-lora`: the adapters of a run as the file that ComfyUI, A1111, Forge and diffusers load."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from refimpl.checks import check_choice
from refimpl.commands.files.output import DTYPES, dtype_named
from refimpl.commands.terminal import parsed


@dataclass(frozen=True)
class ExportLoRACommand:
    """Writes the LoRA that a run has trained, with kohya's names. The output must not exist."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder (its newest checkpoint is used) or one of its checkpoints/step-* folders."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The .safetensors file to write."""
    weights: str = "ema"
    """Weights to write: ema (moving average) or unet (as trained)."""
    dtype: str = "fp16"
    """Dtype of the LoRA's matrices: fp16, bf16 or fp32; empty keeps the run's."""

    def __post_init__(self) -> None:
        check_choice("--dtype", self.dtype or "fp32", DTYPES)


def export_lora_command(arguments: list[str], program: str = "refimpl export-lora") -> None:
    """Reads the run's checkpoint and writes the LoRA file."""
    command = parsed(ExportLoRACommand, arguments, program)
    from refimpl.interop.lora import files as lora_files
    from refimpl.interop.run import lora as run_lora
    from refimpl.model.lora.adapters import DOWN

    lora = run_lora.load(command.run, command.weights)
    named = replace(lora, metadata={**lora.metadata, "modelspec.title": command.out.stem})
    lora_files.save(named, command.out, dtype_named(command.dtype))
    for part, state in lora.parts().items():
        print(f"{part}: {sum(key.endswith(DOWN) for key in state)} modules in {command.out}")
