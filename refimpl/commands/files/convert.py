"""`refimpl convert`: from a single file, a diffusers folder or a run to another format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from refimpl.checks import check_choice
from refimpl.commands.files.output import Output, check_paths, write_opened
from refimpl.commands.terminal import parsed
from refimpl.diffusion.config import PARAMETERISATIONS
from refimpl.errors import InputError

if TYPE_CHECKING:
    from refimpl.interop.checkpoint import Prediction


@dataclass(frozen=True, kw_only=True)
class ConvertCommand(Output):
    """Writes a checkpoint in another format or dtype. The input stays as it is; the output must not exist."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """A .safetensors file, a diffusers folder or a run."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """File or folder to write."""
    prediction: str = ""
    """Prediction type (eps, v or x0), for an input that does not state it or states it wrongly; empty to take the
    input's."""
    v_pred: bool = False
    """Short for --prediction v."""
    ztsnr: bool = False
    """With v or x0: the schedule ends in pure noise."""
    fold_scale_shift: bool = False
    """Fold the scale-and-shift into the autoencoder, for tools that know only 0.13025."""
    use_ema: bool = False
    """Take the moving average that a single file holds (model_ema.…) as its UNet."""
    keep_unknown: bool = False
    """Keep tensors that belong to no part of SDXL, instead of refusing the file."""
    drop_other: bool = False
    """Leave out tensors that belong to no part, such as the moving average and buffers."""
    weights: str = "ema"
    """For a run, the weights to write: ema (moving average) or unet (as trained)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prediction:
            check_choice("--prediction", self.prediction, PARAMETERISATIONS)
        if self.v_pred and self.prediction not in ("", "v"):
            raise InputError(f"--v-pred and --prediction {self.prediction} contradict each other; give one")
        if self.ztsnr and not (self.v_pred or self.prediction):
            raise InputError(
                "--ztsnr needs --v-pred (or --prediction): zero SNR is independent of what is predicted"
            )

    def given_prediction(self) -> Prediction | None:
        """The prediction type that the arguments give, or None to take the input's."""
        from refimpl.interop.checkpoint import Prediction

        kind = "v" if self.v_pred else self.prediction
        return Prediction(kind, self.ztsnr, "given") if kind else None


def convert_command(arguments: list[str], program: str = "refimpl convert") -> None:
    """Reads a checkpoint in one format and writes it in another."""
    command = parsed(ConvertCommand, arguments, program)
    single = check_paths(command.source, command.out, command.format)
    from refimpl.interop import any_checkpoint
    from refimpl.interop.single_file.folded import folded

    opened = any_checkpoint.load(
        command.source, command.given_prediction(), command.weights, command.use_ema, command.keep_unknown
    )
    if command.fold_scale_shift:
        opened = opened._replace(checkpoint=folded(opened.checkpoint, str(command.out)))
    if command.drop_other:
        opened = opened._replace(checkpoint=replace(opened.checkpoint, other={}))
    write_opened(command, opened, command.source, command.out, single)
