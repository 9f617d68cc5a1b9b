"""v-prediction (N §2.1; Salimans & Ho 2022, app. D) and its relation to eps- and x0-prediction.

Functions take (alpha, sigma), never their quotient, so that both ends of the schedule are exact.
Coefficients are [B] (or one number for the whole batch), tensors [B, ...]. Arithmetic is in float32, or in
float64 if any tensor is float64; the result has the dtype of the first tensor.
"""

import torch
from torch import Tensor

from refimpl.diffusion import config
from refimpl.diffusion.schedule import NoiseSchedule
from refimpl.errors import InputError

Coefficient = Tensor | float


def add_noise(x0: Tensor, eps: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """The noised latent x_t = alpha·x0 + sigma·eps.

    x0, eps  [B, ...]        alpha, sigma  [B]        returns  [B, ...]; exactly eps where alpha is 0
    Raises InputError when the shapes disagree.
    """
    a, s, x, e = _lift(alpha, sigma, x0=x0, eps=eps)
    return (a * x + s * e).to(x0.dtype)


def v_target(x0: Tensor, eps: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """The velocity v = alpha·eps − sigma·x0.

    x0, eps  [B, ...]        alpha, sigma  [B]        returns  [B, ...]; exactly −x0 where alpha is 0
    Raises InputError when the shapes disagree.
    """
    a, s, x, e = _lift(alpha, sigma, x0=x0, eps=eps)
    return (a * e - s * x).to(x0.dtype)


def x0_from_v(x_t: Tensor, v: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """The clean latent x0 = alpha·x_t − sigma·v.

    x_t, v  [B, ...]        alpha, sigma  [B]        returns  [B, ...]
    Raises InputError when the shapes disagree.
    """
    a, s, x, velocity = _lift(alpha, sigma, x_t=x_t, v=v)
    return (a * x - s * velocity).to(x_t.dtype)


def eps_from_v(x_t: Tensor, v: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """The noise eps = sigma·x_t + alpha·v.

    x_t, v  [B, ...]        alpha, sigma  [B]        returns  [B, ...]
    Raises InputError when the shapes disagree.
    """
    a, s, x, velocity = _lift(alpha, sigma, x_t=x_t, v=v)
    return (s * x + a * velocity).to(x_t.dtype)


def v_from_eps(
    x_t: Tensor, eps: Tensor, alpha: Coefficient, sigma: Coefficient, is_defined: bool = False
) -> Tensor:
    """The velocity of a noise prediction, v = (eps − sigma·x_t) / alpha.

    x_t, eps  [B, ...]        alpha, sigma  [B]        returns  [B, ...]
    is_defined  the caller knows that no alpha is 0; looking waits for the device
    Raises InputError when the shapes disagree, and, unless is_defined, where alpha is 0: there eps is x_t and does
    not determine v.
    """
    a, s, x, e = _lift(alpha, sigma, x_t=x_t, eps=eps)
    if not is_defined:
        _check_nonzero(a, "alpha", "at SNR 0 the noise is the input itself and does not determine v")
    return ((e - s * x) / a).to(x_t.dtype)


def v_from_x0(
    x_t: Tensor, x0: Tensor, alpha: Coefficient, sigma: Coefficient, is_defined: bool = False
) -> Tensor:
    """The velocity of an x0 prediction, v = (alpha·x_t − x0) / sigma.

    x_t, x0  [B, ...]        alpha, sigma  [B]        returns  [B, ...]; exactly −x0 where alpha is 0
    is_defined  the caller knows that no sigma is 0; looking waits for the device
    Raises InputError when the shapes disagree, and, unless is_defined, where sigma is 0: there x0 is x_t and does
    not determine v.
    """
    a, s, x, clean = _lift(alpha, sigma, x_t=x_t, x0=x0)
    if not is_defined:
        _check_nonzero(
            s, "sigma", "without noise the clean latent is the input itself and does not determine v"
        )
    return ((a * x - clean) / s).to(x_t.dtype)


def target(
    x0: Tensor, eps: Tensor, alpha: Coefficient, sigma: Coefficient, parameterisation: str = "v"
) -> Tensor:
    """What a network of the given parameterisation is trained to output.

    x0, eps  [B, ...]        alpha, sigma  [B]        returns  [B, ...]
    Raises InputError on an unknown parameterisation.
    """
    check_parameterisation(parameterisation)
    if parameterisation == "v":
        return v_target(x0, eps, alpha, sigma)
    return eps if parameterisation == "eps" else x0


def v_from_output(
    output: Tensor,
    x_t: Tensor,
    alpha: Coefficient,
    sigma: Coefficient,
    parameterisation: str = "v",
    is_defined: bool = False,
) -> Tensor:
    """The velocity implied by the output of a network of the given parameterisation.

    output, x_t  [B, ...]        alpha, sigma  [B]        returns  [B, ...]
    is_defined   the caller knows that the conversion divides by no zero; looking waits for the device
    Raises InputError on an unknown parameterisation and, unless is_defined, where the conversion divides by zero.
    """
    check_parameterisation(parameterisation)
    if parameterisation == "v":
        return output
    return (v_from_eps if parameterisation == "eps" else v_from_x0)(x_t, output, alpha, sigma, is_defined)


def check_parameterisation(parameterisation: str, schedule: NoiseSchedule | None = None) -> None:
    """Refuses an unknown parameterisation, and eps-prediction on a schedule that ends in zero SNR (N §2.1).

    Raises InputError, whose message gives the reason.
    """
    config.check_parameterisation(parameterisation, schedule is not None and schedule.is_zero_terminal)


def _lift(alpha: Coefficient, sigma: Coefficient, **tensors: Tensor) -> tuple[Tensor, ...]:
    """(alpha, sigma, *tensors) in the dtype of the arithmetic, with alpha and sigma reshaped to broadcast."""
    (name, first), *others = tensors.items()
    for other_name, other in others:
        if other.shape != first.shape:
            raise InputError(
                f"{name} has shape {list(first.shape)} and {other_name} {list(other.shape)}: they must agree"
            )
    dtype = torch.float32
    for tensor_name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InputError(f"{tensor_name} must be a floating-point tensor, got {tensor.dtype}")
        dtype = torch.promote_types(dtype, tensor.dtype)
    coefficients = []
    for coefficient_name, coefficient in (("alpha", alpha), ("sigma", sigma)):
        c = torch.as_tensor(coefficient, dtype=dtype, device=first.device)
        if c.ndim and (first.ndim == 0 or c.shape != first.shape[:1]):
            raise InputError(
                f"{coefficient_name} has shape {list(c.shape)} and {name} {list(first.shape)}: "
                "give one coefficient per sample, shape [B]"
            )
        coefficients.append(c.reshape(c.shape + (1,) * (first.ndim - 1)) if c.ndim else c)
    return *coefficients, *(tensor.to(dtype) for tensor in tensors.values())


def _check_nonzero(coefficient: Tensor, name: str, why: str) -> None:
    if bool((coefficient == 0).any()):
        raise InputError(f"cannot convert to v where {name} is 0: {why}")
