"""The shape of the UNet of SDXL and its refiner (S §2.1, §2.5, Tab. 1)."""

from dataclasses import dataclass
from typing import Literal

from refimpl.checks import check_whole_numbers
from refimpl.errors import InputError

ATTENTION_KERNELS = ("math", "efficient", "flash", "cudnn", "flex")
"""Names of the attention functions of refimpl.model.dot_product."""
BFLOAT16_KERNELS = ("flash", "cudnn")
"""Those that round q, k and v to bfloat16."""
DETERMINISTIC_KERNELS = ("math", "efficient", "flash")
"""Those whose backward pass gives the same bits twice under `torch.use_deterministic_algorithms`."""

Recompute = Literal["none", "cheap", "full"]
"""What a block computes again in its backward pass: see refimpl.model.recompute."""


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the UNet; the defaults are SDXL's (S Tab. 1).

    Raises InputError when built with values that no network can have.
    """

    in_channels: int = 4
    """Channels of the noisy latents."""
    out_channels: int = 4
    """Channels of the prediction."""
    channels: int = 320
    """Width of the first level; also the number of sinusoidal features of t."""
    channel_mult: tuple[int, ...] = (1, 2, 4)
    """Width of each level in units of `channels`."""
    transformer_depth: tuple[int, ...] = (0, 2, 10)
    """Transformer blocks after each residual block, by level."""
    middle_depth: int = 10
    """Transformer blocks in the middle, at the lowest resolution."""
    res_blocks: int = 2
    """Residual blocks per level on the way down; there is one more on the way up."""
    head_dim: int = 64
    """Channels per attention head."""
    context_dim: int = 2048
    """Channels of the text states."""
    vector_dim: int = 2816
    """Channels of the vector: the pooled text state and the sinusoidal features of the sizes (S §2.2)."""
    groups: int = 32
    """Groups of every group norm."""

    @classmethod
    def sdxl(cls) -> "UNetConfig":
        """S Tab. 1: 2,567,463,684 parameters in 1,680 tensors."""
        return cls()

    @classmethod
    def refiner(cls) -> "UNetConfig":
        """S §2.5: bigG's text states alone (1280), vector of 1280 + 5 · 256: sizes and aesthetic score."""
        return cls(
            channels=384,
            channel_mult=(1, 2, 4, 4),
            transformer_depth=(0, 4, 4, 0),
            middle_depth=4,
            context_dim=1280,
            vector_dim=2560,
        )

    @classmethod
    def tiny(cls) -> "UNetConfig":
        """SDXL's shape for two CPU cores; fits the tiny text encoders (32 + 64 wide, pooled 64)."""
        return cls(
            channels=32,
            channel_mult=(1, 2, 3),
            transformer_depth=(0, 1, 1),
            middle_depth=1,
            res_blocks=1,
            head_dim=32,
            context_dim=96,
            vector_dim=64 + 6 * 256,
            groups=8,
        )

    def __post_init__(self) -> None:
        check_whole_numbers(self, least={"transformer_depth": 0})
        if len(self.transformer_depth) != len(self.channel_mult):
            raise InputError(
                f"UNetConfig.transformer_depth = {self.transformer_depth} and channel_mult = "
                f"{self.channel_mult} differ in length: give one entry per level"
            )
        if self.channels % 2:
            raise InputError(f"UNetConfig.channels = {self.channels}: must be even (cosines and sines of t)")
        depths = (*self.transformer_depth, self.middle_depth)
        for width, depth in zip((*self.widths, self.widths[-1]), depths, strict=True):
            if width % self.groups:
                raise InputError(f"UNetConfig.groups = {self.groups} does not divide a level's width {width}")
            if depth and width % self.head_dim:
                raise InputError(
                    f"UNetConfig.head_dim = {self.head_dim} does not divide the width {width} of a level "
                    "with transformer blocks"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * mult for mult in self.channel_mult)
