"""Offset noise (S §2.5): noise whose mean varies from channel to channel, so that brightness is learned."""

from torch import Tensor

from refimpl.errors import InputError

SDXL_OFFSET = 0.05  # S §2.5


def offset_noise(eps: Tensor, z: Tensor, strength: float = SDXL_OFFSET) -> Tensor:
    """eps + s·z, of variance 1 + s²: one further normal per (sample, channel), the same at every pixel.

    eps  [B, C, H, W]  unit noise        z  [B, C]  unit normals independent of eps        strength  s
    returns  [B, C, H, W] in eps's dtype
    Raises InputError when z is not [B, C] of eps.
    """
    if eps.ndim != 4 or z.shape != eps.shape[:2]:
        raise InputError(f"eps must be [B, C, H, W] and z [B, C], got {list(eps.shape)} and {list(z.shape)}")
    return eps + strength * z.to(eps.dtype)[:, :, None, None]
