"""Offset noise (S §2.5): noise with a random mean per channel, so that the model learns overall brightness."""

from torch import Tensor

from refimpl.errors import InputError

SDXL_OFFSET = 0.05  # S §2.5


def offset_noise(eps: Tensor, z: Tensor, strength: float = SDXL_OFFSET) -> Tensor:
    """eps + s·z, of variance 1 + s²: one more normal per (sample, channel), shared by all its pixels.

    eps  [B, C, H, W]  unit noise        z  [B, C]  unit normals independent of eps        strength  s
    returns  [B, C, H, W] in eps's dtype
    Raises InputError when the shape of z is not eps's [B, C].
    """
    if eps.ndim != 4 or z.shape != eps.shape[:2]:
        raise InputError(f"eps must be [B, C, H, W] and z [B, C], got {list(eps.shape)} and {list(z.shape)}")
    return eps + strength * z.to(eps.dtype)[:, :, None, None]
