"""`refimpl export`: a run's checkpoint for ComfyUI and A1111 (one file) or diffusers (a folder)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from refimpl.commands.files.output import Output, check_paths, write_opened
from refimpl.commands.terminal import parsed
from refimpl.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ExportCommand(Output):
    """Writes a run's checkpoint for other tools: one file for ComfyUI and A1111, or a folder for diffusers."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder (its newest checkpoint is used) or one of its checkpoints/step-* folders."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """File or folder to write."""
    fold_scale_shift: bool = True
    """In a single file, fold the scale-and-shift into the autoencoder, since other tools know only 0.13025."""
    weights: str = "ema"
    """Weights to write: ema (moving average) or unet (as trained)."""


def export_command(arguments: list[str], program: str = "refimpl export") -> None:
    """Writes a run's checkpoint in a format that other tools read."""
    command = parsed(ExportCommand, arguments, program)
    single = check_paths(command.run, command.out, command.format)
    from refimpl.interop import any_checkpoint
    from refimpl.interop.any_checkpoint import RUN
    from refimpl.interop.single_file.folded import folded

    if any_checkpoint.kind_of(command.run) != RUN:
        raise InputError(
            f"{command.run} is not a run folder; `refimpl convert` takes files and diffusers folders"
        )
    opened = any_checkpoint.load(command.run, weights=command.weights)
    if single and command.fold_scale_shift:
        opened = opened._replace(checkpoint=folded(opened.checkpoint, str(command.out)))
    write_opened(command, opened, command.run, command.out, single)
