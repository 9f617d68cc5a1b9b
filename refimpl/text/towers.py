"""Tokenizer and text towers together, as the subfolders of a diffusers SDXL folder hold them (S Tab. 1)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from transformers import CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils import logging as transformers_logging

from refimpl.text.encoders import load_encoder
from refimpl.text.tokenizer import Tokenizer, load_tokenizer

Towers = tuple[Tokenizer, CLIPTextModel | None, CLIPTextModelWithProjection]
"""Tokenizer, CLIP-L (None where bigG encodes alone) and bigG."""


def load_towers(folder: Path, has_l: bool = True, tokenizer: str = "", clean: str = "none") -> Towers:
    """Tokenizer and towers from the subfolders of a diffusers SDXL folder; without CLIP-L as its refiner's has them.

    tokenizer  its folder, instead of tokenizer/ or tokenizer_2/
    clean      what it does to a prompt first, text.clean
    """
    found = replace(load_tokenizer(tokenizer or tokenizer_in(folder) or folder / "tokenizer"), clean=clean)
    with without_progress_bars():
        encoder_l = load_encoder(CLIPTextModel, folder / "text_encoder") if has_l else None
        encoder_g = load_encoder(CLIPTextModelWithProjection, folder / "text_encoder_2")
    return found, encoder_l, encoder_g


def tokenizer_in(folder: Path) -> Path | None:
    """The tokenizer's folder in or beside the parts of a model; None where there is none."""
    return next((folder / name for name in ("tokenizer", "tokenizer_2") if (folder / name).is_dir()), None)


def save_towers(folder: Path, towers: Towers) -> None:
    """Writes the subfolders that `load_towers` reads."""
    tokenizer, encoder_l, encoder_g = towers
    tokenizer.save(folder / "tokenizer")
    with without_progress_bars():
        if encoder_l is not None:
            encoder_l.save_pretrained(str(folder / "text_encoder"))
        encoder_g.save_pretrained(str(folder / "text_encoder_2"))


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """transformers draws a bar for every file it reads or writes, in the middle of ours."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
