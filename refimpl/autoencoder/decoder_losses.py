"""What the restored picture is compared by: pixels, and features of a network the user brings (N §4.4, S §2.4)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from refimpl.errors import InputError

Features = Callable[[Tensor], Sequence[Tensor]]
"""Pictures [B, 3, H, W] in −1..1 → feature maps [B, C, h, w], of one or several layers."""


def l1_loss(restored: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error of pixels in −1..1."""
    return (restored - images).abs().mean()


def perceptual_loss(features: Features, restored: Tensor, images: Tensor) -> Tensor:
    """Distance between feature maps of unit length (Zhang et al. 2018, eq. 1, all channels of weight 1).

    Mean over the layers of the mean over places of the squared distance between the two unit vectors.
    """
    with torch.no_grad():
        wanted = [maps.detach() for maps in features(images)]
    found = features(restored)
    distances = [(_unit(f) - _unit(w)).square().sum(dim=1).mean() for f, w in zip(found, wanted, strict=True)]
    return torch.stack(distances).mean()


def _unit(features: Tensor) -> Tensor:
    length = features.float().norm(dim=1, keepdim=True)
    return torch.where(length > 0, features / length.where(length > 0, 1.0), 0.0)


def load_features(path: Path, size: int, device: torch.device) -> Features:
    """A feature network from a TorchScript file, frozen; run once on a picture of `size` px to see that it fits.

    The file maps pictures [B, 3, H, W] in −1..1 to a tensor or a list of tensors [B, C, h, w].
    Raises InputError when it cannot be read, or gives anything else.
    """
    if not path.is_file():
        raise InputError(f"feature network {path} does not exist")
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        given = module(torch.zeros(1, 3, size, size, device=device))
    except Exception as error:  # of any class: the file brings its own code
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise InputError(
            f"feature network {path} cannot be used on pictures of {size} px ({reason}); save it with torch.jit"
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
        raise InputError(f"feature network {path} must give a tensor or a list of tensors [B, C, h, w]")
    return features
