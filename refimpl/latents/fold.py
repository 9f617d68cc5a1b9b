"""Scale and shift folded into the autoencoder, for tools that know only 0.13025 (N App. B)."""

import copy

import torch

from refimpl.errors import InputError
from refimpl.latents.scale_shift import SDXL_FACTOR, ScaleShift
from refimpl.latents.vae import VAE


@torch.no_grad()
def fold_scale_shift(vae: VAE, scale_shift: ScaleShift, factor: float = SDXL_FACTOR) -> VAE:
    """A copy of the autoencoder whose latents z′ need only the customary factor f.

    The model's data is x = (z − μ)/σ. A tool that computes x = f·z′ and decodes z′ = x/f gets the same data and
    pictures from the copy as z = x·σ + μ gives with the original. Only the two 1×1 convolutions change.

    factor   f, what the tool multiplies latents by
    returns  VAE on the same device and in the same dtype; the folding is computed in float64
    Raises InputError when the channel counts differ or the factor is not positive and finite.
    """
    channels = vae.config.latent_channels
    if scale_shift.channels != channels:
        raise InputError(
            f"fold_scale_shift: statistics of {scale_shift.channels} channels do not fit a VAE of {channels}; "
            "use those measured with this VAE"
        )
    scale = ScaleShift.from_factor(factor, channels)  # checks the factor
    folded = copy.deepcopy(vae)
    encode, decode = folded.quant_conv, folded.post_quant_conv
    assert encode.bias is not None
    assert decode.bias is not None
    mean = encode.weight.new_tensor(scale_shift.mean, dtype=torch.float64)
    std = encode.weight.new_tensor(scale_shift.std, dtype=torch.float64)
    ratio = std / encode.weight.new_tensor(scale.std, dtype=torch.float64)  # σ·f

    # z′ = (z − μ)/(σ·f): the first half of quant_conv's outputs is z, the second the log-variance
    weight, bias = encode.weight.to(torch.float64, copy=True), encode.bias.to(torch.float64, copy=True)
    encode.weight[:channels] = (weight[:channels] / ratio[:, None, None, None]).to(encode.weight)
    encode.bias[:channels] = ((bias[:channels] - mean) / ratio).to(encode.bias)
    encode.bias[channels:] = (bias[channels:] - 2 * torch.log(ratio)).to(encode.bias)

    # z = z′·σ·f + μ
    weight, bias = decode.weight.to(torch.float64, copy=True), decode.bias.to(torch.float64, copy=True)
    decode.weight.copy_(weight * ratio[:, None, None])
    decode.bias.copy_(bias + weight[:, :, 0, 0] @ mean)
    return folded
