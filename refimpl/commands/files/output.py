"""How a checkpoint is written, for the commands that write one: paths, format, dtype and tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refimpl.checks import check_choice
from refimpl.commands.files.notes import say_cleaning, say_for_diffusers
from refimpl.errors import InputError

if TYPE_CHECKING:
    import torch

    from refimpl.interop.any_checkpoint import Opened
    from refimpl.interop.checkpoint import Checkpoint
    from refimpl.text.tokenizer import Tokenizer

DTYPES = ("fp16", "bf16", "fp32")
FORMATS = ("auto", "single_file", "diffusers")
SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Output:
    """What the commands that write a checkpoint have in common: its format, dtype and tokenizer."""

    format: str = "auto"
    """Format to write: single_file or diffusers. auto writes a single file for a name that ends in .safetensors, else
    a folder."""
    dtype: str = ""
    """Dtype of all weights: fp16, bf16 or fp32; empty keeps each tensor's own."""
    tokenizer: str = ""
    """Folder with CLIP's tokenizer, for a diffusers folder; empty looks beside the checkpoint."""

    def __post_init__(self) -> None:
        check_choice("--format", self.format, FORMATS)
        check_choice("--dtype", self.dtype or "fp32", DTYPES)


def dtype_named(name: str) -> torch.dtype | None:
    """The dtype of one of DTYPES; None, to keep what each tensor has, for the empty name."""
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[name] if name else None


def check_paths(source: Path, out: Path, format: str) -> bool:
    """Whether a single file is asked for. Raises InputError when the paths cannot be used."""
    from refimpl.interop import any_checkpoint

    kind = any_checkpoint.kind_of(source)  # it exists
    if out.exists() and out.samefile(source):
        raise InputError(f"{out} is both what is read and what would be written; give another name")
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} exists already; give another name, or remove it first")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is not a folder; make it first")
    folder, read = out.parent.resolve(), source.resolve()
    is_beside_steps = kind == any_checkpoint.RUN and folder == read and (read / "checkpoints").is_dir()
    if source.is_dir() and folder.is_relative_to(read) and not is_beside_steps:
        raise InputError(f"{out} lies in {source}, which is only read; give a name outside of it")
    single = format == "single_file" or (format == "auto" and out.suffix == SUFFIX)
    if single and out.suffix != SUFFIX:
        raise InputError(f"{out} would be a single file, and must end in {SUFFIX} for other tools to open it")
    if not single and out.suffix in (SUFFIX, ".ckpt", ".pt", ".pth", ".bin"):
        raise InputError(
            f"{out} would be a folder with the name of a file; end it in {SUFFIX} for a single file"
        )
    return single


def write_opened(command: Output, opened: Opened, source: Path, out: Path, single: bool) -> None:
    """Writes what was opened, as one file if `single` and else as a diffusers folder; prints what it predicts."""
    from refimpl.interop import diffusers_folder, single_file
    from refimpl.latents.scale_shift import SDXL_DEFAULT

    checkpoint, dtype, tokenizer = opened.checkpoint, dtype_named(command.dtype), None
    check_finite(checkpoint, source)
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
    say_for_diffusers(out, checkpoint, single, has_tokenizer=tokenizer is not None)
    say_cleaning(opened.tokenizer)


def check_finite(checkpoint: Checkpoint, source: Path) -> None:
    """Raises InputError for a stored weight that is NaN or infinite; what is computed in writing is not looked at."""
    import torch

    from refimpl.storage.safetensors_file import CHUNK
    from refimpl.storage.streaming import Deferred

    for part in ("unet", "vae", "text_l", "text_g"):
        for name, tensor in (getattr(checkpoint, part) or {}).items():
            if isinstance(tensor, Deferred) or not tensor.is_floating_point():
                continue
            for piece in tensor.detach().flatten().split(CHUNK):
                wide = piece.float() if piece.dtype.itemsize == 1 else piece
                if not bool(torch.isfinite(wide).all()):
                    raise InputError(
                        f"{source}: {part} tensor {name} has values that are not finite (NaN or infinity), and so "
                        "would every picture be; give a checkpoint from before they came up"
                    )


def _tokenizer(given: str, opened: Opened, source: Path) -> Tokenizer | Path | None:
    """The tokenizer given, the checkpoint's own, or one in a folder `tokenizer` beside it; None if there is none."""
    from refimpl.interop.any_checkpoint import FOLDER
    from refimpl.interop.diffusers_folder.tokenizers import find_tokenizer

    if given:
        return find_tokenizer(given)
    if opened.tokenizer is not None:
        return opened.tokenizer
    beside = source.parent / "tokenizer"
    return find_tokenizer(beside) if opened.kind != FOLDER and beside.is_dir() else None
