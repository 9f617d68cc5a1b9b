"""Patch discriminator and its hinge loss, the adversarial term of the decoder's finetuning (S §2.4; N §4.4).

The network is PatchGAN (Isola et al. 2017, §3.2.2): a few strided convolutions whose every output judges one patch.
Group norms stand where it has batch norms, so that a picture's judgement does not depend on its batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # of the leaky rectifiers
GROUPS = 8


class PatchDiscriminator(nn.Module):
    """Pictures to one number per patch, high for real ones.

    channels  of the first layer, a multiple of 8; doubled at every further one, at most eightfold
    strided   layers that halve the sides; 3 judge patches of 70 × 70 px
    """

    def __init__(self, channels: int = 64, strided: int = 3, image_channels: int = 3):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(image_channels, channels, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        width = channels
        for level in range(1, strided + 1):
            out = channels * min(2**level, 8)
            stride = 2 if level < strided else 1
            layers += [
                nn.Conv2d(width, out, 4, stride, 1, bias=False),
                nn.GroupNorm(GROUPS, out),
                nn.LeakyReLU(SLOPE),
            ]
            width = out
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))

    @property
    def smallest_side(self) -> int:
        """Shortest side of a picture that leaves one patch, px."""
        halvings = sum(isinstance(layer, nn.Conv2d) and layer.stride == (2, 2) for layer in self.layers)
        return 3 * 2**halvings

    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] → [B, 1, patches down, patches across]."""
        return self.layers(images)


def discriminator_loss(real: Tensor, restored: Tensor) -> Tensor:
    """Hinge loss of the judge: ½·(mean max(0, 1 − real) + mean max(0, 1 + restored)), from its outputs."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + restored).mean())


def generator_loss(restored: Tensor) -> Tensor:
    """Hinge loss of the judged: −mean of the judge's output."""
    return -restored.mean()


def make_discriminator(seed: int, channels: int = 64) -> PatchDiscriminator:
    """Weights normal with std 0.02, as in Isola et al. 2017 (§6.2), a function of the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PatchDiscriminator(channels)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.02)
    return network
