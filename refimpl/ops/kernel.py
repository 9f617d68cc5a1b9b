"""The operations compiled from csrc/: the same names and arguments as refimpl.ops.reference, over torch.ops.

They agree with the reference to within rounding, on the CPU and on CUDA. The differences:

- The arithmetic is float32 unless the prediction (or x0) is float64, whatever the other tensors are.
- v_loss can be differentiated once, with respect to prediction only; a second derivative raises. So do those of
  geglu, group_norm_silu and layer_norm, which are in network_kernel.py.
- add_noise is differentiable with respect to x0 and eps, but not alpha and sigma.
- Invalid arguments raise ValueError or TypeError.

Autocast does not change the operations: pass the tensors as autocast leaves them (a bfloat16 or float16
prediction with float32 latents costs no copy). The tensors of one call share a memory format, contiguous or
channels-last; one that differs is copied into the format of the first.

On the CPU, the memory of freed results is cached for the next call: at most four blocks, 512 MB in total.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from refimpl.ops import _kernels as _kernels  # registers torch.ops.refimpl; ImportError when it is not built
from refimpl.ops.network_kernel import geglu as geglu
from refimpl.ops.network_kernel import group_norm_silu as group_norm_silu
from refimpl.ops.network_kernel import layer_norm as layer_norm
from refimpl.ops.network_kernel import memory_order

# The overloads themselves: looking them up by name on every call costs as much as the call.
_ADD_NOISE = torch.ops.refimpl.add_noise.default
_ADD_KEYED_NOISE = torch.ops.refimpl.add_keyed_noise.default
_V_LOSS = torch.ops.refimpl.v_loss.default
_KEYED_V_LOSS = torch.ops.refimpl.keyed_v_loss.default
_CHANNEL_MOMENTS = torch.ops.refimpl.channel_moments.default
_KEYED_NORMAL = torch.ops.refimpl.keyed_normal.default


def add_noise(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noised latent x_t = alpha·x0 + sigma·eps (N §2.1).

    x0, eps  [B, C, H, W]        alpha, sigma  [B]        returns  [B, C, H, W] in x0's dtype
    Raises ValueError when shapes or devices disagree, TypeError on an integer dtype.
    """
    return _ADD_NOISE(x0, eps, alpha, sigma)


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

    weight · mean over C, H, W of (prediction − v)², with v = alpha·eps − sigma·x0. The forward pass also
    computes the gradient, for a backward pass whose incoming gradient is `expected` for each loss (default
    1 / B: the caller takes the mean over the batch). Any other incoming gradient is also exact, at the cost of a
    second pass.

    prediction, x0, eps  [B, C, H, W]        alpha, sigma, weight  [B]
    returns  [B]  float32, or float64 when prediction is float64
    Raises ValueError when shapes or devices disagree or samples are empty, TypeError on an integer dtype.
    """
    return _V_LOSS(prediction, x0, eps, alpha, sigma, weight, expected)


def add_keyed_noise(x0: Tensor, key: Tensor, alpha: Tensor, sigma: Tensor, offset: float = 0.0) -> Tensor:
    """`add_noise` with the noise drawn from each sample's key, in registers and never stored.

    x0  [B, C, H, W]        key  [B, 2]        alpha, sigma  [B]        returns  [B, C, H, W] in x0's dtype
    Raises ValueError when shapes or devices disagree, TypeError on a wrong dtype.
    """
    return _ADD_KEYED_NOISE(x0, key, alpha, sigma, offset)


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
    """`v_loss` with the noise drawn from each sample's key, in registers and never stored.

    prediction, x0  [B, C, H, W]        key  [B, 2]        alpha, sigma, weight  [B]        returns  [B]
    Raises as `v_loss` does.
    """
    return _KEYED_V_LOSS(prediction, x0, key, alpha, sigma, weight, offset, expected)


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per-channel count, mean and sum of squared deviations (Welford's M2; N App. B).

    x  [B, C, H, W]        returns  count [] (elements per channel), mean [C], m2 [C], all float64
    An empty x gives count 0, mean 0 and m2 0. Raises ValueError on another number of dimensions.
    """
    return _CHANNEL_MOMENTS(x)


def keyed_normal(key: Tensor, shape: Sequence[int], offset: float = 0.0) -> Tensor:
    """Unit normal noise from each key: refimpl.diffusion.philox.keyed_normal to within 4 ulp of its radius.

    key  [B, 2]  int64 holding uint32        shape  (C, H, W)        returns  [B, C, H, W]  float32
    Bitwise identical on every device and in every batch. Raises ValueError on a wrong key, shape or offset.
    """
    if len(shape) != 3:
        raise ValueError(f"shape must be (C, H, W), got {tuple(shape)}")
    channels, height, width = shape
    return _KEYED_NORMAL(key, channels, height, width, offset)


# ---- Shapes and dtypes of the results, for tracing with fake tensors -------------------------------------------


def _check(x0: Tensor, name: str, other: Tensor, *per_sample: Tensor) -> None:
    torch._check_value(x0.ndim == 4, lambda: f"x0 must have shape [B, C, H, W], got {list(x0.shape)}")
    torch._check_value(
        other.shape == x0.shape,
        lambda: f"{name} has shape {list(other.shape)} and x0 {list(x0.shape)}: they must agree",
    )
    torch._check_value(
        other.device == x0.device,
        lambda: f"{name} is on {other.device} and x0 on {x0.device}: move them to one device",
    )
    for scalars in per_sample:
        torch._check_value(
            scalars.device.type != "meta" or x0.device.type == "meta",
            lambda s=scalars: (
                f"a tensor of shape {list(s.shape)} is on meta and x0 on {x0.device}: it has no values"
            ),
        )
        torch._check_value(
            scalars.ndim >= 1 and scalars.shape[0] == x0.shape[0],
            lambda s=scalars: (
                f"a tensor of shape {list(s.shape)} beside x0 {list(x0.shape)}: give one per sample"
            ),
        )


def _like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_order(x))


def _loss_like(prediction: Tensor, x0: Tensor, *per_sample: Tensor) -> Tensor:
    _check(x0, "prediction", prediction, *per_sample)
    dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    return prediction.new_empty([x0.shape[0]], dtype=dtype)


@torch.library.register_fake("refimpl::add_noise")
def _(x0, eps, alpha, sigma):
    _check(x0, "eps", eps, alpha, sigma)
    return _like(x0)


@torch.library.register_fake("refimpl::add_keyed_noise")
def _(x0, key, alpha, sigma, offset=0.0):
    _check(x0, "x0", x0, key, alpha, sigma)
    return _like(x0)


@torch.library.register_fake("refimpl::keyed_normal")
def _(key, channels, height, width, offset=0.0):
    return key.new_empty([key.shape[0], channels, height, width], dtype=torch.float32)


@torch.library.register_fake("refimpl::v_loss")
def _(prediction, x0, eps, alpha, sigma, weight, expected=None):
    _check(x0, "eps", eps)
    return _loss_like(prediction, x0, alpha, sigma, weight)


@torch.library.register_fake("refimpl::keyed_v_loss")
def _(prediction, x0, key, alpha, sigma, weight, offset=0.0, expected=None):
    return _loss_like(prediction, x0, key, alpha, sigma, weight)


@torch.library.register_fake("refimpl::v_loss_forward")
def _(prediction, x0, eps, key, alpha, sigma, weight, offset, expected):
    return _loss_like(prediction, x0, alpha, sigma, weight), _like(prediction)


@torch.library.register_fake("refimpl::v_loss_backward")
def _(prediction, x0, eps, key, alpha, sigma, weight, offset, incoming):
    _check(x0, "prediction", prediction, alpha, sigma, weight, incoming)
    return _like(prediction)


@torch.library.register_fake("refimpl::v_loss_correct_")
def _(grad, prediction, x0, eps, key, alpha, sigma, weight, offset, incoming, expected):
    _check(x0, "prediction", prediction, alpha, sigma, weight, incoming)


@torch.library.register_fake("refimpl::channel_moments")
def _(x):
    torch._check_value(x.ndim == 4, lambda: f"x must have shape [B, C, H, W], got {list(x.shape)}")
    options = {"dtype": torch.float64}
    return (
        x.new_empty([], **options),
        x.new_empty([x.shape[1]], **options),
        x.new_empty([x.shape[1]], **options),
    )
