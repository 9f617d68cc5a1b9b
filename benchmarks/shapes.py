"""What the operations are timed on: latents of SDXL's images, batches, dtypes, and traffic in bytes."""

from typing import NamedTuple

import torch
from torch import Tensor

from refimpl.diffusion.philox import Purpose, draw_key
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr

BATCHES = (1, 4, 16, 64, 512)
LATENT_1024 = (4, 128, 128)
LATENT_832_1216 = (4, 104, 152)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Tensors of a call's size that must be read and written: no implementation moves less.
STREAMS = {
    "add_noise": (2, 1),  # x0, eps; x_t
    "add_keyed_noise": (1, 1),
    "keyed_normal": (0, 1),
    "v_loss": (3, 1),  # prediction, x0, eps; the gradient (forward and backward together)
    "step": (5, 2),  # add_noise and v_loss: the network runs between them
    "keyed_v_loss": (2, 1),
    "channel_moments": (1, 0),
    "geglu": (5, 3),  # the two halves; the product, then both halves and its gradient; theirs
    "group_norm_silu": (3, 2),  # x; y, then x and its gradient; that of x
    "layer_norm": (3, 2),  # the same
    "adamw_ema": (6, 4),  # the gradient twice, weight, moments, average; all but the gradient are written
}

ALWAYS_FLOAT32 = ("keyed_normal", "adamw_ema")  # whatever the latents are


class Inputs(NamedTuple):
    """Arguments of every operation for one batch."""

    prediction: Tensor
    x0: Tensor
    eps: Tensor
    key: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    weight: Tensor


def inputs(batch: int, latent: tuple[int, int, int], dtype: torch.dtype, device: str = "cpu") -> Inputs:
    """Normal latents (zeros and subnormals would run at another speed), timesteps from 0 to 999."""
    generator = torch.Generator().manual_seed(batch)
    prediction, x0, eps = (torch.randn(batch, *latent, generator=generator) for _ in range(3))
    t = torch.linspace(0, 999, batch).long()
    alpha, sigma = zero_terminal_snr(sdxl_schedule()).at(t)
    key = draw_key(0, torch.arange(batch), 0, Purpose.NOISE)
    return Inputs(
        prediction.to(device, dtype).requires_grad_(),
        x0.to(device, dtype),
        eps.to(device, dtype),
        key.to(device),
        t.to(device),
        alpha.to(device),
        sigma.to(device),
        torch.linspace(0.5, 1.5, batch).to(device),
    )


def minimal_bytes(operation: str, x: Tensor) -> int:
    """Bytes of the tensors that the operation must read and write."""
    reads, writes = STREAMS[operation]
    element = 4 if operation in ALWAYS_FLOAT32 else x.element_size()
    return (reads + writes) * x.numel() * element
