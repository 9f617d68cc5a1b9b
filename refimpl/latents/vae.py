"""SDXL's autoencoder (S §2.4; N App. B), under the keys of the published single file."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl.errors import InputError
from refimpl.latents.config import VAEConfig
from refimpl.latents.tiling import decode_in_strips, encode_in_strips
from refimpl.latents.vae_blocks import NORM_EPS, Level, Middle

LOGVAR_RANGE = (-30.0, 20.0)  # of the posterior, as in the published autoencoder: exp stays finite


class Encoder(nn.Module):
    """Picture → mean and log-variance before quant_conv: [B, 3, H, W] → [B, 2 · latent, H/f, W/f]."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.image_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        width = widths[0]
        for level, out in enumerate(widths):
            resize = "downsample" if level < len(widths) - 1 else None
            self.down.append(Level(width, out, config.res_blocks, config.groups, resize))
            width = out
        self.mid = Middle(width, config.groups)
        self.norm_out = nn.GroupNorm(config.groups, width, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(width, 2 * config.latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        h = self.conv_in(images)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))

    def in_strips(self, images: Tensor, rows: int) -> Tensor:
        """The same in strips of `rows` rows (a multiple of the factor f); see refimpl.latents.tiling."""
        return encode_in_strips(self.conv_in, self.down, self.mid, self.norm_out, self.conv_out, images, rows)


class Decoder(nn.Module):
    """Latent after post_quant_conv → picture: [B, latent, h, w] → [B, 3, f·h, f·w]."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = config.widths
        width = widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = Middle(width, config.groups)
        levels = []
        for level in reversed(range(len(widths))):
            resize = "upsample" if level > 0 else None
            levels.append(Level(width, widths[level], config.res_blocks + 1, config.groups, resize))
            width = widths[level]
        self.up = nn.ModuleList(reversed(levels))  # the published keys number the levels as the encoder does
        self.norm_out = nn.GroupNorm(config.groups, width, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(width, config.image_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        h = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))

    def in_strips(self, latents: Tensor, rows: int) -> Tensor:
        """The same in strips of `rows` rows; see refimpl.latents.tiling."""
        return decode_in_strips(
            self.conv_in, self.mid, reversed(self.up), self.norm_out, self.conv_out, latents, rows
        )


class VAE(nn.Module):
    """Pictures in [−1, 1] ↔ latents, a factor f smaller on each side and unscaled (scale_shift scales them).

    Runs in float32, bfloat16 or float64; results have the dtype of the input. float16 is refused: the published
    weights' activations overflow it, and the pictures come out black.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def moments(self, images: Tensor, tile: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior of each latent value.

        images   [B, 3, H, W]  float in [−1, 1]; H, W multiples of the factor
        tile     px, a multiple of the factor and at least twice it: every layer is applied to tiles as wide as the
                 picture and this high, which takes less memory and more time (refimpl.latents.tiling). The result
                 is that of the whole picture but for the order in which sums are rounded, and bitwise equal to it
                 when one tile covers the picture
        returns  mean, logvar  [B, 4, H/f, W/f]; logvar clamped to −30..20

        Raises InputError for other shapes, integer pixels, float16, and for tiles where a gradient is wanted.
        """
        factor = self.config.factor
        self._check("images", images, self.config.image_channels, factor)
        x = images.to(self._dtype())
        both = self.quant_conv(self._tiled(self.encoder, x, tile, x.shape[2]))
        mean, logvar = both.to(images.dtype).chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def encode(self, images: Tensor, tile: int | None = None) -> Tensor:
        """The posterior's mean: [B, 3, H, W] → [B, 4, H/f, W/f]. Arguments and errors as in `moments`."""
        mean, _ = self.moments(images, tile)
        return mean

    def decode(self, latents: Tensor, tile: int | None = None) -> Tensor:
        """Pictures decoded from unscaled latents.

        latents  [B, 4, h, w]
        tile     as in `moments`, in px of the picture
        returns  [B, 3, f·h, f·w], about −1..1, not clamped

        Raises InputError for other shapes and float16.
        """
        self._check("latents", latents, self.config.latent_channels, 1)
        z = latents.to(self._dtype())
        images = self._tiled(self.decoder, self.post_quant_conv(z), tile, z.shape[2] * self.config.factor)
        return images.to(latents.dtype)

    def _tiled(self, network: Encoder | Decoder, x: Tensor, tile: int | None, height: int) -> Tensor:
        """The network's output for x; height is the picture's, px."""
        if tile is None:
            return network(x)
        factor = self.config.factor
        if type(tile) is not int or tile % factor or tile < 2 * factor:
            raise InputError(f"VAE: tile = {tile!r} px must be a multiple of {factor}, at least {2 * factor}")
        if tile >= height:
            return network(x)
        if torch.is_grad_enabled() and (
            x.requires_grad or any(weight.requires_grad for weight in network.parameters())
        ):
            raise InputError(
                f"VAE: tile = {tile} px keeps nothing for a gradient; call it under torch.no_grad()"
            )
        return network.in_strips(x, tile)

    def _dtype(self) -> torch.dtype:
        return self.quant_conv.weight.dtype

    def _check(self, name: str, x: Tensor, channels: int, multiple: int) -> None:
        if x.ndim != 4 or x.shape[1] != channels or min(x.shape[2:]) < 1:
            raise InputError(
                f"VAE: {name} have shape {list(x.shape)}; they must be [B, {channels}, height, width]"
            )
        if x.shape[2] % multiple or x.shape[3] % multiple:
            raise InputError(
                f"VAE: {name} are {x.shape[3]} × {x.shape[2]} (width × height): "
                f"both sides must be multiples of {multiple}; crop or resize them"
            )
        if not x.is_floating_point():
            raise InputError(
                f"VAE: {name} have dtype {x.dtype}; they must be floating-point (pictures scaled to −1..1)"
            )
        device = x.device.type
        autocast = None
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            autocast = torch.get_autocast_dtype(device)
        if torch.float16 in (x.dtype, self._dtype(), autocast):
            raise InputError(
                f"VAE: float16 overflows with the published weights; use float32 or bfloat16 ({name} have "
                f"{x.dtype}, the weights {self._dtype()}, autocast is {autocast or 'off'})"
            )
