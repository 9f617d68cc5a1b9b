"""Image prompts: CLIP-G's image embedding in place of the pooled text state (S §2.6)."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from refimpl.data.loading.transfer import onto
from refimpl.errors import InputError
from refimpl.text.encoders import freeze
from refimpl.text.towers import without_progress_bars

# Statistics of the pixels that CLIP was trained on, in 0 … 1 (Radford et al. 2021; OpenCLIP kept them).
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def load_image_tower(folder: Path | str, pooled_dim: int) -> CLIPVisionModelWithProjection:
    """The image tower from a local folder, frozen and in eval mode. Nothing is downloaded.

    pooled_dim  channels of the pooled text state that its embedding replaces
    Raises InputError when the folder cannot be read, lacks weights, or embeds in another number of channels.
    """
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"image tower folder {folder}: config.json not found")
    try:
        with without_progress_bars():
            loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except (OSError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"image tower folder {folder}: cannot be read ({error})") from error
    tower, report = loaded
    if report["missing_keys"]:
        raise InputError(f"image tower folder {folder}: missing tensors {sorted(report['missing_keys'])}")
    if tower.config.projection_dim != pooled_dim:
        raise InputError(
            f"image tower folder {folder}: embeds in {tower.config.projection_dim} channels, the pooled text state "
            f"has {pooled_dim}; give the image tower that belongs to the second text tower"
        )
    tower.float()
    freeze(tower)
    return tower


def save_image_tower(tower: CLIPVisionModelWithProjection, folder: Path) -> None:
    """Writes the folder that `load_image_tower` reads."""
    with without_progress_bars():
        tower.save_pretrained(str(folder))


def embed_images(tower: CLIPVisionModelWithProjection, images: Tensor) -> Tensor:
    """Image embeddings that take the place of the pooled text states.

    images   [B, 3, H, W] in −1 … 1      returns  [B, P], projected and, like the pooled text states, not normalised
    """
    side = tower.config.image_size
    assert isinstance(side, int)  # else transformers would not have built it
    return tower(pixel_values=clip_pixels(images, side)).image_embeds


def clip_pixels(images: Tensor, side: int) -> Tensor:
    """The input of CLIP's image tower: bicubic resize of the shorter side to `side`, centre crop, standardised.

    images  [B, 3, H, W] in −1 … 1      returns  [B, 3, side, side]
    """
    height, width = images.shape[-2:]
    shorter = min(height, width)
    scaled = side * height // shorter, side * width // shorter
    pixels = F.interpolate(images.float() / 2 + 0.5, scaled, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (scaled[0] - side) // 2, (scaled[1] - side) // 2
    square = pixels[..., top : top + side, left : left + side]
    mean, std = onto(square.device, torch.tensor((PIXEL_MEAN, PIXEL_STD))).view(2, 3, 1, 1)
    return (square - mean) / std
