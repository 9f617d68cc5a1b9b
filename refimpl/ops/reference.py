"""The operations in torch: the definition that the kernels are tested against.

All of them are out of place. Those on latents compute in float32, or in float64 if any tensor is float64; those of
the network's blocks round each step to their tensors' dtype, as torch does.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.diffusion import philox, v_prediction
from refimpl.errors import InputError


def add_noise(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noised latent x_t = alpha·x0 + sigma·eps (N §2.1).

    x0, eps  [B, C, H, W]        alpha, sigma  [B]        returns  [B, C, H, W] in x0's dtype
    Raises InputError when the shapes disagree.
    """
    _check_per_sample(x0, alpha=alpha, sigma=sigma)
    return v_prediction.add_noise(x0, eps, alpha, sigma)


def v_loss(
    prediction: Tensor,
    x0: Tensor,
    eps: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    weight: Tensor,
    expected: float | None = None,
) -> Tensor:
    """The weighted v-prediction loss of each sample (N §2.1, §2.4).

    weight · mean over C, H, W of (prediction − v)², with v = alpha·eps − sigma·x0 never rounded to a
    lower precision. Only prediction gets a gradient.

    prediction, x0, eps  [B, C, H, W]        alpha, sigma, weight  [B]
    expected  changes nothing: a hint to the backend `kernel`
    returns  [B]  float32, or float64 if any tensor is float64
    Raises InputError when shapes disagree, or when a sample has no elements to average. An empty batch returns
    an empty tensor, shape [0].
    """
    _check_per_sample(x0, alpha=alpha, sigma=sigma, weight=weight)
    if prediction.shape != x0.shape:
        raise _disagree("prediction", prediction, "x0", x0, "they must agree")
    if x0[:1].numel() == 0 and x0.shape[0] > 0:
        raise InputError(
            f"the loss is a mean over C, H, W, and shape {list(x0.shape)} leaves nothing to average"
        )
    dtype = torch.float32
    for name, tensor in (("prediction", prediction), ("x0", x0), ("eps", eps)):
        if not tensor.is_floating_point():
            raise InputError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
        dtype = torch.promote_types(dtype, tensor.dtype)
    v = v_prediction.v_target(x0.detach().to(dtype), eps.detach().to(dtype), alpha.detach(), sigma.detach())
    squared = (prediction.to(dtype) - v).square()
    return weight.detach().to(squared) * squared.mean(dim=tuple(range(1, x0.ndim)))


def add_keyed_noise(x0: Tensor, key: Tensor, alpha: Tensor, sigma: Tensor, offset: float = 0.0) -> Tensor:
    """`add_noise` with the noise drawn from each sample's key.

    x0  [B, C, H, W]        key  [B, 2]        alpha, sigma  [B]        returns  [B, C, H, W] in x0's dtype
    Raises InputError when the shapes disagree.
    """
    return add_noise(x0, _noise_of(x0, key, offset), alpha, sigma)


def keyed_v_loss(
    prediction: Tensor,
    x0: Tensor,
    key: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    weight: Tensor,
    offset: float = 0.0,
    expected: float | None = None,
) -> Tensor:
    """`v_loss` with the noise drawn from each sample's key.

    prediction, x0  [B, C, H, W]        key  [B, 2]        alpha, sigma, weight  [B]        returns  [B]
    Raises InputError as `v_loss` does.
    """
    return v_loss(prediction, x0, _noise_of(x0, key, offset), alpha, sigma, weight, expected)


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per-channel count, mean and sum of squared deviations (Welford's M2; N app. B).

    x  [B, C, H, W]        returns  count [] (elements per channel), mean [C], m2 [C], all float64
    An empty x gives count 0, mean 0 and m2 0, which leaves a merge unchanged.
    Raises InputError on another number of dimensions.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise _not_floating("x", x, "[B, C, H, W]")
    values = x.detach().double().transpose(0, 1).flatten(1)  # [C, B·H·W]
    count = values.shape[1]
    mean = values.sum(dim=1) / max(count, 1)
    m2 = (values - mean[:, None]).square().sum(dim=1)
    return torch.tensor(count, dtype=torch.float64, device=x.device), mean, m2


def keyed_normal(key: Tensor, shape: Sequence[int], offset: float = 0.0) -> Tensor:
    """Unit normal noise from each key; see `refimpl.diffusion.philox.keyed_normal`.

    key  [B, 2]        shape  (C, H, W)        returns  [B, C, H, W]  float32
    """
    return philox.keyed_normal(key, shape, offset)


def geglu(packed: Tensor) -> Tensor:
    """The gated linear unit a · GELU(b) of both halves of the last dimension, with the exact GELU (Shazeer 2020, §2).

    packed  [..., 2·n]  (a, b), as one projection leaves them        returns  [..., n] in packed's dtype
    Raises InputError when the last dimension is odd, or on an integer dtype.
    """
    if packed.ndim == 0 or packed.shape[-1] % 2 or not packed.is_floating_point():
        raise _not_floating("packed", packed, "[..., 2·n]")
    a, b = packed.chunk(2, dim=-1)
    return a * F.gelu(b)


def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """silu(group_norm(x)): the pair in front of every 3×3 convolution (S §2.1; Wu & He 2018, eq. 1).

    x  [B, C, H, W]        weight, bias  [C]        groups  of C / groups channels        eps  added to each variance
    returns  [B, C, H, W] in x's dtype; the normalisation is in the wider one of x's and weight's
    Raises InputError when the shapes disagree.
    """
    if x.ndim != 4 or groups < 1 or x.shape[1] % groups:
        raise InputError(f"x must be [B, C, H, W] with {groups} groups of channels, got {list(x.shape)}")
    _check_per_channel(x, 1, weight, bias)
    wide = torch.promote_types(x.dtype, weight.dtype)
    normalised = F.group_norm(x.to(wide), groups, weight.to(wide), bias.to(wide), eps)
    return F.silu(normalised).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Each row normalised over its channels, the last dimension (Ba et al. 2016, eq. 4), as in transformer blocks.

    x  [..., C]        weight, bias  [C]        eps  added to each variance
    returns  [..., C] in x's dtype, or under autocast in the one that torch leaves it in: float32 on a GPU
    Raises InputError when the shapes disagree, or on an integer dtype.
    """
    if x.ndim == 0 or not x.is_floating_point():
        raise _not_floating("x", x, "[..., C]")
    _check_per_channel(x, x.ndim - 1, weight, bias)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _check_per_channel(x: Tensor, dim: int, weight: Tensor, bias: Tensor) -> None:
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter.shape != x.shape[dim : dim + 1]:
            raise _disagree(name, parameter, "x", x, "give one per channel")


def _noise_of(x0: Tensor, key: Tensor, offset: float) -> Tensor:
    _check_image(x0)
    if key.ndim != 2 or key.shape[0] != x0.shape[0]:
        raise _disagree("key", key, "x0", x0, "give one key [2] per sample")
    return philox.keyed_normal(key, x0.shape[1:], offset)


def _check_per_sample(x0: Tensor, **coefficients: Tensor) -> None:
    _check_image(x0)
    for name, coefficient in coefficients.items():
        if not isinstance(coefficient, Tensor):
            raise InputError(f"{name} must be a tensor of shape [B], one per sample, got {coefficient!r}")
        if coefficient.shape != x0.shape[:1]:
            raise _disagree(name, coefficient, "x0", x0, "give one per sample")


def _check_image(x0: Tensor) -> None:
    if x0.ndim != 4:
        raise InputError(f"x0 must have shape [B, C, H, W], got {list(x0.shape)}")


def _disagree(name: str, tensor: Tensor, other: str, x: Tensor, wanted: str) -> InputError:
    return InputError(f"{name} has shape {list(tensor.shape)} and {other} {list(x.shape)}: {wanted}")


def _not_floating(name: str, x: Tensor, shape: str) -> InputError:
    return InputError(
        f"{name} must be a floating-point tensor {shape}, got {x.dtype} of shape {list(x.shape)}"
    )
