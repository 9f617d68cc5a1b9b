"""Settings of the text towers (S Tab. 1, N §4.2)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils import logging as transformers_logging

from refimpl.checks import check_at_least, check_choice, check_seed
from refimpl.errors import InputError
from refimpl.text.conditioning import NULL_KINDS, POOLINGS
from refimpl.text.encoders import clip_bigg_config, clip_l_config, load_encoders, tiny_configs, tiny_encoders
from refimpl.text.tokenizer import Tokenizer, load_tokenizer, tiny_tokenizer

Towers = tuple[Tokenizer, CLIPTextModel, CLIPTextModelWithProjection]


@dataclass(frozen=True)
class TextConfig:
    """Which towers encode the captions, and what stands for no caption."""

    towers: str = "sdxl"
    """sdxl (CLIP ViT-L and OpenCLIP ViT-bigG) or tiny (the same architectures, random, over a small vocabulary)"""
    folder: str = ""
    """folder with tokenizer/, text_encoder/ and text_encoder_2/, as in a diffusers SDXL folder; unused by tiny"""
    seed: int = 0
    """of the tiny towers' weights"""
    pooling: str = "mean"
    """pooled state of a long prompt: mean over its chunks (N §4.2), or the first chunk's"""
    null: str = "zeros"
    """the condition of a dropped caption and of the guidance's other half: zeros, or empty (the empty prompt)"""
    cached_prompts: int = 512
    """encoded prompts kept in memory; the towers are frozen, so a caption's states never change"""

    def __post_init__(self) -> None:
        check_choice("text.towers", self.towers, ("sdxl", "tiny"))
        check_choice("text.pooling", self.pooling, POOLINGS)
        check_choice("text.null", self.null, NULL_KINDS)
        check_seed("text.seed", self.seed)
        check_at_least("text.cached_prompts", self.cached_prompts, 1)

    def architectures(self) -> tuple[CLIPTextConfig, CLIPTextConfig]:
        """transformers' configs of the two towers."""
        return (clip_l_config(), clip_bigg_config()) if self.towers == "sdxl" else tiny_configs()

    @property
    def context_dim(self) -> int:
        """Channels of the context: both towers' hidden sizes."""
        return sum(config.hidden_size for config in self.architectures())

    @property
    def pooled_dim(self) -> int:
        """Channels of the pooled state: the second tower's projection."""
        width = self.architectures()[1].projection_dim
        assert width is not None  # both architectures name it
        return width

    def load(self) -> Towers:
        """Tokenizer and both towers, frozen. Raises InputError when `folder` is needed and holds no towers."""
        if self.towers == "tiny":
            return (tiny_tokenizer(), *tiny_encoders(self.seed))
        if not self.folder:
            raise InputError(
                "text.folder is empty; name a folder with tokenizer/, text_encoder/ and text_encoder_2/ "
                "(a diffusers SDXL folder has them)"
            )
        return load_towers(Path(self.folder))


def load_towers(folder: Path) -> Towers:
    """Tokenizer and towers from the three subfolders of a diffusers SDXL folder."""
    with _without_progress_bars():
        encoders = load_encoders(folder / "text_encoder", folder / "text_encoder_2")
    return (load_tokenizer(folder / "tokenizer"), *encoders)


def save_towers(folder: Path, towers: Towers) -> None:
    """Writes the three subfolders that `load_towers` reads."""
    tokenizer, encoder_l, encoder_g = towers
    tokenizer.save(folder / "tokenizer")
    with _without_progress_bars():
        encoder_l.save_pretrained(str(folder / "text_encoder"))
        encoder_g.save_pretrained(str(folder / "text_encoder_2"))


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """transformers draws a bar for every file it reads or writes, in the middle of ours."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
