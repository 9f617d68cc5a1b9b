"""Settings of the text towers (S Tab. 1, N §4.2) and of image prompts (S §2.6)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from refimpl.checks import check_at_least, check_choice, check_seed
from refimpl.errors import InputError
from refimpl.text.cleaning import CLEANINGS

if TYPE_CHECKING:
    from transformers import CLIPTextConfig

    from refimpl.text.towers import Towers

CLIP_L_CHANNELS, BIGG_CHANNELS = 768, 1280  # S Tab. 1
TINY_L_CHANNELS, TINY_G_CHANNELS = 32, 64
SIZE_FEATURES = 256
"""Features of each size integer (S §2.2)."""

POOLINGS = ("mean", "first")
NULL_KINDS = ("zeros", "empty")
TOWERS = ("sdxl", "bigg", "tiny", "tiny_bigg")
VECTORS = {"sizes": 6, "score": 5}  # numbers that follow the pooled state in the network's vector


@dataclass(frozen=True)
class TextConfig:
    """Which towers encode the captions, and what replaces a dropped caption."""

    towers: str = "sdxl"
    """Text towers: sdxl (CLIP ViT-L and OpenCLIP ViT-bigG), bigg (bigG alone, as in SDXL's refiner), tiny or
    tiny_bigg (the same architectures with random weights and a small vocabulary)."""
    folder: str = ""
    """Folder with tokenizer/, text_encoder/ and text_encoder_2/, as in a diffusers SDXL folder; empty for the towers
    of train.init_from. The tiny towers do not use it."""
    tokenizer: str = ""
    """Folder of a CLIP tokenizer; empty for tokenizer/ or tokenizer_2/ in `folder`, or beside train.init_from."""
    vector: str = "sizes"
    """What follows the pooled state in the network's vector: sizes (original, crop and target size: six numbers) or
    score (original size, crop and aesthetic score: the refiner's five, S §2.5)."""
    seed: int = 0
    """Seed of the tiny towers' weights."""
    pooling: str = "mean"
    """Pooled state of a long prompt: mean (over its chunks, N §4.2) or first (of its first chunk)."""
    null: str = "zeros"
    """Condition used for a dropped caption and for the unconditional half of guidance: zeros, or empty (the empty
    prompt)."""
    clean: str = "none"
    """What is done to a caption, in training and sampling, before it is tokenised: none, as in ComfyUI and diffusers,
    or openclip, as when bigG was trained (ftfy's repairs, HTML entities, white space; needs ftfy)."""
    cached_prompts: int = 512
    """Number of encoded prompts kept in memory, as long as the towers are frozen and a caption's states never
    change."""
    learning_rate_l: float = 0.0
    """Peak learning rate of CLIP-L, to train it too; 0 leaves it frozen."""
    learning_rate_g: float = 0.0
    """Peak learning rate of bigG, to train it too; 0 leaves it frozen."""

    def __post_init__(self) -> None:
        check_choice("text.towers", self.towers, TOWERS)
        check_choice("text.vector", self.vector, tuple(VECTORS))
        check_choice("text.pooling", self.pooling, POOLINGS)
        check_choice("text.null", self.null, NULL_KINDS)
        check_choice("text.clean", self.clean, CLEANINGS)
        check_seed("text.seed", self.seed)
        check_at_least("text.cached_prompts", self.cached_prompts, 1)
        for name in ("learning_rate_l", "learning_rate_g"):
            check_at_least(f"text.{name}", getattr(self, name), 0)
        if self.learning_rate_l and not self.has_l:
            raise InputError(
                f"text.learning_rate_l {self.learning_rate_l} trains CLIP-L, which towers {self.towers!r} do not "
                "have; leave it at 0"
            )

    @property
    def has_l(self) -> bool:
        """Whether CLIP-L encodes alongside bigG."""
        return self.towers in ("sdxl", "tiny")

    @property
    def is_tiny(self) -> bool:
        """Whether the towers are the random ones, which need no files."""
        return self.towers.startswith("tiny")

    @property
    def is_trained(self) -> bool:
        """Whether a tower is trained, so that a caption's states change."""
        return self.learning_rate_l > 0 or self.learning_rate_g > 0

    def architectures(self) -> tuple[CLIPTextConfig | None, CLIPTextConfig]:
        """transformers' configs of CLIP-L (None without it) and of bigG."""
        from refimpl.text.encoders import clip_bigg_config, clip_l_config, tiny_configs

        config_l, config_g = tiny_configs() if self.is_tiny else (clip_l_config(), clip_bigg_config())
        return (config_l if self.has_l else None), config_g

    @property
    def context_dim(self) -> int:
        """Channels of the context: the towers' hidden sizes together."""
        channels_l = TINY_L_CHANNELS if self.is_tiny else CLIP_L_CHANNELS
        return self.pooled_dim + (channels_l if self.has_l else 0)

    @property
    def vector_dim(self) -> int:
        """Channels of the network's vector: pooled state, and features of each number after it."""
        return self.pooled_dim + VECTORS[self.vector] * SIZE_FEATURES

    @property
    def pooled_dim(self) -> int:
        """Channels of the pooled state: bigG's projection, as wide as its hidden states."""
        return TINY_G_CHANNELS if self.is_tiny else BIGG_CHANNELS

    def load(self) -> Towers:
        """Tokenizer and towers, frozen. Raises InputError when `folder` is needed and holds no towers."""
        from refimpl.text.encoders import tiny_encoders
        from refimpl.text.tokenizer import tiny_tokenizer
        from refimpl.text.towers import load_towers

        if self.is_tiny:
            encoder_l, encoder_g = tiny_encoders(self.seed)
            tokenizer = replace(tiny_tokenizer(), clean=self.clean)
            return tokenizer, (encoder_l if self.has_l else None), encoder_g
        if not self.folder:
            raise InputError(
                "text.folder is empty; name a folder with tokenizer/, text_encoder/ and text_encoder_2/ "
                "(a diffusers SDXL folder has them)"
            )
        return load_towers(Path(self.folder), self.has_l, self.tokenizer, self.clean)


@dataclass(frozen=True)
class ImagePromptConfig:
    """Conditioning on an image: trains the layer that embeds it, `label_emb`, and nothing else (S §2.6)."""

    folder: str = ""
    """Folder of the image tower that belongs to bigG (transformers' CLIPVisionModelWithProjection); empty to turn
    image prompts off."""
