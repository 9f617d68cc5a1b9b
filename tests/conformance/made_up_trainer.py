"""A trainer that does not exist, written as trainers are: what its adapter in made_up_adapter.py calls."""

import math

import torch


class Noise:
    """A scheduler with a fault: MinSNR uses the published schedule, whichever is trained on."""

    def __init__(self, ztsnr: bool) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.abar = torch.cumprod(1 - betas, 0)
        self.snr = self.abar / (1 - self.abar)
        if ztsnr:
            root = self.abar.sqrt()
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
            self.abar = root**2

    def mix(self, latents: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Noised latents."""
        abar = self.abar[steps].view(-1, 1, 1, 1)
        return (abar.sqrt() * latents + (1 - abar).sqrt() * noise).to(latents.dtype)

    def velocity(self, latents: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Targets of v-prediction."""
        abar = self.abar[steps].view(-1, 1, 1, 1)
        return abar.sqrt() * noise - (1 - abar).sqrt() * latents

    def loss_weight(self, steps: torch.Tensor, gamma: float) -> torch.Tensor:
        """MinSNR."""
        return self.snr[steps].clamp(max=gamma) / (self.snr[steps] + 1)


SHAPES = [(1024, 1024), (832, 1216), (1216, 832), (768, 1344), (1344, 768), (512, 2048), (2048, 512)]


def closest(width: int, height: int) -> tuple[int, int]:
    """The shape nearest by log aspect."""
    return min(SHAPES, key=lambda shape: abs(math.log(shape[0] * height / (shape[1] * width))))


def fit(picture: torch.Tensor, across: int, down: int) -> tuple[torch.Tensor, int, int]:
    """Scales to cover, crops the middle; returns the picture, the rows above it and the columns left of it."""
    height, width = picture.shape[1:]
    scale = max(across / width, down / height)
    size = (max(down, round(height * scale)), max(across, round(width * scale)))
    scaled = torch.nn.functional.interpolate(picture[None], size, mode="bilinear", antialias=True)[0]
    top, left = (size[0] - down) // 2, (size[1] - across) // 2
    return scaled[:, top : top + down, left : left + across], top, left


def conditioning(height: int, width: int, top: int, left: int, down: int, across: int) -> torch.Tensor:
    """The size numbers of one image."""
    return torch.tensor([height, width, top, left, down, across], dtype=torch.float32)


def guided(positive: torch.Tensor, negative: torch.Tensor, strength: float) -> torch.Tensor:
    """Classifier-free guidance; there is no rescale."""
    return negative + strength * (positive - negative)
