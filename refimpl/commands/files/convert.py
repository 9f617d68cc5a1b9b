"""`refimpl convert` and `refimpl export`: single file, diffusers folder and run, one into the other."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from refimpl.checks import check_choice
from refimpl.errors import InputError
from refimpl.interop import any_checkpoint, diffusers_folder, single_file
from refimpl.interop.any_checkpoint import FOLDER, RUN, Opened
from refimpl.interop.checkpoint import KINDS, Prediction
from refimpl.interop.diffusers_folder.tokenizers import find_tokenizer
from refimpl.interop.single_file.folded import folded
from refimpl.latents.scale_shift import SDXL_DEFAULT
from refimpl.text.tokenizer import Tokenizer

DTYPES = {"": None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
FORMATS = ("auto", "single_file", "diffusers")
SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Output:
    """What both commands write, and how."""

    format: str = "auto"
    """single_file or diffusers; auto takes a single file for a name that ends in .safetensors, else a folder"""
    dtype: str = ""
    """fp16, bf16 or fp32, of all weights; empty keeps what each has"""
    tokenizer: str = ""
    """folder with CLIP's tokenizer, for a diffusers folder; empty looks beside the checkpoint"""

    def __post_init__(self) -> None:
        check_choice("--format", self.format, FORMATS)
        check_choice("--dtype", self.dtype or "fp32", [name for name in DTYPES if name])


@dataclass(frozen=True, kw_only=True)
class ConvertCommand(Output):
    """Writes a checkpoint in another format or dtype. The input stays as it is; the output must not exist."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """a .safetensors file, a diffusers folder or a run"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """the file or folder to write"""
    prediction: str = ""
    """eps, v or x0, where the input says nothing or something wrong"""
    v_pred: bool = False
    """short for --prediction v"""
    ztsnr: bool = False
    """with v or x0: the schedule ends in pure noise"""
    fold_scale_shift: bool = False
    """put the scale-and-shift into the autoencoder, for tools that know only 0.13025"""
    use_ema: bool = False
    """take the moving average that a single file holds (model_ema.…) as its UNet"""
    keep_unknown: bool = False
    """keep tensors that belong to no part of SDXL, instead of refusing the file"""
    drop_other: bool = False
    """leave out what belongs to no part: moving average, buffers"""
    weights: str = "ema"
    """of a run: ema, the moving average, or unet, the weights as trained"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prediction:
            check_choice("--prediction", self.prediction, KINDS)
        if self.v_pred and self.prediction not in ("", "v"):
            raise InputError(f"--v-pred and --prediction {self.prediction} contradict each other; give one")
        if self.ztsnr and not (self.v_pred or self.prediction):
            raise InputError(
                "--ztsnr needs --v-pred (or --prediction): zero SNR is a fact of its own beside it"
            )

    def given_prediction(self) -> Prediction | None:
        """What the arguments say, or None for what the input says."""
        kind = "v" if self.v_pred else self.prediction
        return Prediction(kind, self.ztsnr, "given") if kind else None


@dataclass(frozen=True, kw_only=True)
class ExportCommand(Output):
    """Writes a run's checkpoint for other tools: one file for ComfyUI and A1111, or a folder for diffusers."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """a run folder (its newest checkpoint) or one of its checkpoints/step-* folders"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """the file or folder to write"""
    fold_scale_shift: bool = True
    """in a single file, put the scale-and-shift into the autoencoder: other tools know only 0.13025"""
    weights: str = "ema"
    """ema, the moving average, or unet, the weights as trained"""


def convert_command(arguments: list[str], program: str = "refimpl convert") -> None:
    """Reads one format, writes another."""
    command = tyro.cli(ConvertCommand, args=arguments, prog=program)
    single = check_paths(command.source, command.out, command.format)
    opened = any_checkpoint.load(
        command.source, command.given_prediction(), command.weights, command.use_ema, command.keep_unknown
    )
    if command.fold_scale_shift:
        opened = opened._replace(checkpoint=folded(opened.checkpoint, str(command.out)))
    if command.drop_other:
        opened = opened._replace(checkpoint=replace(opened.checkpoint, other={}))
    write_opened(command, opened, command.source, command.out, single)


def export_command(arguments: list[str], program: str = "refimpl export") -> None:
    """Writes a run's checkpoint in a format of other tools."""
    command = tyro.cli(ExportCommand, args=arguments, prog=program)
    single = check_paths(command.run, command.out, command.format)
    if any_checkpoint.kind_of(command.run) != RUN:
        raise InputError(
            f"{command.run} is no run folder; `refimpl convert` takes files and diffusers folders"
        )
    opened = any_checkpoint.load(command.run, weights=command.weights)
    if single and command.fold_scale_shift:
        opened = opened._replace(checkpoint=folded(opened.checkpoint, str(command.out)))
    write_opened(command, opened, command.run, command.out, single)


def check_paths(source: Path, out: Path, format: str) -> bool:
    """Whether a single file is asked for; InputError when the paths cannot be."""
    any_checkpoint.kind_of(source)  # it exists
    if out.exists() and out.samefile(source):
        raise InputError(f"{out} is both what is read and what would be written; give another name")
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} exists already; give another name, or remove it first")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is no folder; make it first")
    single = format == "single_file" or (format == "auto" and out.suffix == SUFFIX)
    if single and out.suffix != SUFFIX:
        raise InputError(f"{out} would be a single file, and must end in {SUFFIX} for other tools to open it")
    if not single and out.suffix in (SUFFIX, ".ckpt", ".pt", ".pth", ".bin"):
        raise InputError(
            f"{out} would be a folder with the name of a file; end it in {SUFFIX} for a single file"
        )
    return single


def write_opened(command: Output, opened: Opened, source: Path, out: Path, single: bool) -> None:
    """Writes what was opened, and says what it predicts. single: as one file, else as a diffusers folder."""
    checkpoint, dtype = opened.checkpoint, DTYPES[command.dtype]
    if single:
        single_file.save(checkpoint, out, dtype)
        if checkpoint.scale_shift != SDXL_DEFAULT:
            print(
                f"{out} keeps its scale-and-shift in its metadata; tools that know only 0.13025 will decode it "
                "wrongly: `refimpl convert --fold-scale-shift` writes one they decode"
            )
    else:
        tokenizer = _tokenizer(command.tokenizer, opened, source)
        diffusers_folder.save(checkpoint, out, dtype, tokenizer, opened.zeros_for_empty)
        if tokenizer is None:
            print(
                f"{out} has no tokenizer; --tokenizer FOLDER writes one, or copy tokenizer/ and tokenizer_2/ there"
            )
    prediction = checkpoint.prediction
    if checkpoint.unet is not None:
        end = " with zero terminal SNR" if prediction.zero_terminal_snr else ""
        print(f"{out}: predicts {prediction.kind}{end} ({prediction.reason})")
    else:
        print(f"{out}: written")


def _tokenizer(given: str, opened: Opened, source: Path) -> Tokenizer | Path | None:
    """The one named, the checkpoint's own, or one in a folder `tokenizer` beside it; None where there is none."""
    if given:
        return find_tokenizer(given)
    if opened.tokenizer is not None:
        return opened.tokenizer
    beside = source.parent / "tokenizer"
    return find_tokenizer(beside) if opened.kind != FOLDER and beside.is_dir() else None
