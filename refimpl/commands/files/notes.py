"""What other tools do not read from a written checkpoint, said when it is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refimpl.interop.checkpoint import Checkpoint
    from refimpl.text.tokenizer import Tokenizer


def say_for_diffusers(out: Path, checkpoint: Checkpoint, single: bool, has_tokenizer: bool) -> None:
    """Prints what diffusers needs to be told about a file, or does differently with a folder."""
    from refimpl.interop.diffusers_folder.scheduler import lines_for_single_file

    lines = lines_for_single_file(checkpoint.prediction) if single and checkpoint.unet is not None else []
    if lines:
        print(f"{out}: diffusers' from_single_file does not read what it predicts; after it:")
        print(*(f"    {line}" for line in lines), sep="\n")
    if not single and has_tokenizer and checkpoint.text_g is not None:
        print(f"{out}: in diffusers, bigG sees every ! of a prompt as padding, as with SDXL's own folder")


def say_cleaning(tokenizer: Tokenizer | Path | None) -> None:
    """Prints that a run's captions were cleaned, which no file or folder can say."""
    if getattr(tokenizer, "clean", "none") != "none":
        print(
            "its captions were cleaned as OpenCLIP does (text.clean), which other tools do not do: give them prompts "
            "without curly quotes, full-width letters or HTML entities"
        )
