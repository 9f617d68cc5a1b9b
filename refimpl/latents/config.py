"""Settings of the autoencoder: its shape (S §2.4), its weights, and its latents' scale and shift (N App. B)."""

from dataclasses import dataclass

from refimpl.checks import check_at_least, check_positive, check_whole_numbers
from refimpl.errors import InputError

SCALE_SHIFT_NAMES = ("sdxl", "novelai_anime")
"""Published scale-and-shifts, by the names that `latents.scale_shift` takes."""


@dataclass(frozen=True)
class VAEConfig:
    """Shape of the autoencoder; the defaults are SDXL's.

    Raises InputError when built with values that no network can have.
    """

    image_channels: int = 3
    """Colour channels of an image."""
    latent_channels: int = 4
    """Channels of the latents."""
    channels: int = 128
    """Width (channels) of the full-resolution level."""
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    """Width of each level in units of `channels`; each level after the first halves the sides."""
    res_blocks: int = 2
    """Residual blocks per level of the encoder; the decoder has one more."""
    groups: int = 32
    """Groups of every group norm."""

    @classmethod
    def sdxl(cls) -> "VAEConfig":
        """83,653,863 parameters in 248 tensors; 8 px per latent cell."""
        return cls()

    @classmethod
    def tiny(cls) -> "VAEConfig":
        """The same shape, 8 px per latent cell and 4 channels, small enough to train on one CPU core."""
        return cls(channels=8, channel_mult=(1, 2, 4, 8), res_blocks=1, groups=2)

    def __post_init__(self) -> None:
        check_whole_numbers(self)
        for width in self.widths:
            if width % self.groups:
                raise InputError(f"VAEConfig.groups = {self.groups} does not divide a level's width {width}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * mult for mult in self.channel_mult)

    @property
    def factor(self) -> int:
        """Pixels per latent cell and side."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True)
class LatentConfig:
    """The autoencoder's weights and the scale-and-shift of its latents (N App. B)."""

    folder: str = ""
    """Folder with autoencoder.safetensors and scale_shift.json; made when absent and train_steps > 0. Neither is
    looked at when train.init_from has an autoencoder, which its UNet was trained with."""
    weights: str = ""
    """Safetensors file of a trained autoencoder (with or without the prefix `first_stage_model.`), used in any case.
    Without it, the autoencoder of train.init_from is used where there is one."""
    scale_shift: str = "sdxl"
    """Scale-and-shift of the latents: sdxl (0.13025), novelai_anime (N Fig. 8), measure (Welford over the data),
    checkpoint (the one that train.init_from was trained with), or the path of a JSON preset."""
    train_steps: int = 0
    """Steps of autoencoder training when no weights are given; 0 trains none."""
    train_batch: int = 8
    """Images per step of autoencoder training."""
    train_learning_rate: float = 3e-3
    """Peak learning rate of autoencoder training."""
    train_size: int = 64
    """Side of the square crops that the autoencoder is trained on, px."""
    kl_weight: float = 1e-6
    """Weight of the KL term, per latent element, relative to the squared error (the LDM autoencoder loss)."""

    def __post_init__(self) -> None:
        check_at_least("latents.train_steps", self.train_steps, 0)
        check_at_least("latents.train_batch", self.train_batch, 1)
        check_at_least("latents.train_size", self.train_size, 1)
        check_at_least("latents.kl_weight", self.kl_weight, 0)
        check_positive("latents.train_learning_rate", self.train_learning_rate)
