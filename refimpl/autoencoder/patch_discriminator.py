"""Patch discriminator and its hinge losses, the adversarial term of decoder finetuning.

An autoencoder of Stable Diffusion is trained with such a term (Rombach et al. 2022, §3.1). S §2.4 trains that
architecture anew, and N §4.4 finetunes its decoder; neither names its losses.
The network is PatchGAN (Isola et al. 2017, §3.2.2): a few strided convolutions, each of whose outputs judges one
patch. Group norms replace its batch norms, so that the output for an image does not depend on the rest of its batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # of the leaky rectifiers
GROUPS = 8


class PatchDiscriminator(nn.Module):
    """Maps images to one logit per patch, high for real images.

    channels  channels of the first layer, a multiple of 8; doubled at each further layer, up to eightfold
    strided   number of layers that halve the sides; with 3, the receptive field is 70 × 70 px
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
        """Smallest image side, in px, for which the output has at least one patch."""
        halvings = sum(isinstance(layer, nn.Conv2d) and layer.stride == (2, 2) for layer in self.layers)
        return 3 * 2**halvings

    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] → [B, 1, patches down, patches across]."""
        return self.layers(images)


def discriminator_loss(real: Tensor, restored: Tensor) -> Tensor:
    """Hinge loss of the discriminator's outputs: ½·(mean max(0, 1 − real) + mean max(0, 1 + restored))."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + restored).mean())


def generator_loss(restored: Tensor) -> Tensor:
    """Hinge loss of the decoder: minus the mean of the discriminator's output."""
    return -restored.mean()


def make_discriminator(seed: int, channels: int = 64) -> PatchDiscriminator:
    """A discriminator whose weights are drawn from N(0, 0.02²), as in Isola et al. 2017 (§6.2), using `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PatchDiscriminator(channels)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.02)
    return network
