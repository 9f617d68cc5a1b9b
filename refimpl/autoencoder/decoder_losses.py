"""Reconstruction losses: in pixels, and in the features of a network that the user supplies.

Stable Diffusion's autoencoder is trained with a perceptual loss (Rombach et al. 2022, §3.1). N §4.4, which finetunes
its decoder, and S §2.4 name no loss; the note of S Tab. 3 says only that Stable Diffusion 2.x reduced the weight of
the perceptual one.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from refimpl.autoencoder.vgg_features import SMALLEST_SIDE, load_vgg_features
from refimpl.errors import InputError

Features = Callable[[Tensor], Sequence[Tensor]]
"""Images [B, 3, H, W] in −1..1 → feature maps [B, C, h, w] of one or more layers."""


def l1_loss(restored: Tensor, images: Tensor) -> Tensor:
    """Mean absolute pixel error, for images in −1..1."""
    return (restored - images).abs().mean()


def perceptual_loss(features: Features, restored: Tensor, images: Tensor) -> Tensor:
    """Distance between unit-normalised feature maps (Zhang et al. 2018, eq. 1, with all channel weights 1).

    At each position, the squared distance between the two unit vectors; averaged over positions, then over layers.
    Zhang et al. sum over layers instead.
    """
    with torch.no_grad():
        wanted = [maps.detach() for maps in features(images)]
    found = features(restored)
    distances = [(_unit(f) - _unit(w)).square().sum(dim=1).mean() for f, w in zip(found, wanted, strict=True)]
    return torch.stack(distances).mean()


def _unit(features: Tensor) -> Tensor:
    length = features.float().norm(dim=1, keepdim=True)
    return torch.where(length > 0, features / length.where(length > 0, 1.0), 0.0)


def load_features(path: Path, size: int, device: torch.device, trusts_code: bool = False) -> Features:
    """A frozen feature network: VGG-16 from a safetensors file, or any network from a TorchScript file.

    size         px; the network is run once on an image of this side as a check
    trusts_code  whether the code in a TorchScript file may be run: torch.jit.load trusts the file, and so its author
    A TorchScript network maps images [B, 3, H, W] in −1..1 to a tensor or a list of tensors [B, C, h, w].
    Raises InputError when the file cannot be read or may not be trusted, or the network returns anything else.
    """
    if not path.is_file():
        raise InputError(f"feature network {path} does not exist")
    if path.suffix == ".safetensors":
        if size < SMALLEST_SIDE:
            raise InputError(f"decoder.size {size} px is below VGG-16's smallest image, {SMALLEST_SIDE} px")
        return load_vgg_features(path, device)
    if not trusts_code:
        raise InputError(
            f"feature network {path} is taken for TorchScript, which brings code of its own that would be run; give "
            "VGG-16 as .safetensors, or add --trust-perceptual if you trust whoever made the file"
        )
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        given = module(torch.zeros(1, 3, size, size, device=device))
    except Exception as error:  # of any class: the file brings its own code
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise InputError(
            f"feature network {path} cannot be used on images of {size} px ({reason}); save it with torch.jit"
        ) from error

    def features(images: Tensor) -> Sequence[Tensor]:
        maps = module(images)
        return [maps] if isinstance(maps, Tensor) else list(maps)

    maps = [given] if isinstance(given, Tensor) else given
    if (
        not isinstance(maps, list | tuple)
        or not maps
        or not all(isinstance(m, Tensor) and m.ndim == 4 for m in maps)
    ):
        raise InputError(f"feature network {path} must return a tensor or a list of tensors [B, C, h, w]")
    return features
