"""AdamW and the moving average of the weights, as defined (Loshchilov & Hutter 2019, alg. 2; S §2.5)."""

from torch import Tensor

from refimpl.errors import InputError


def adamw_ema(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    average: Tensor,
    step: Tensor,
    scale: Tensor,
    found_inf: Tensor,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    decay: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One optimizer step of one tensor and the step of its moving average that follows, out of place.

    weight, gradient, exp_avg, exp_avg_sq, average  one shape; exp_avg and exp_avg_sq are the two moments
    step       number of steps taken before, a scalar    scale  what the gradient is multiplied by, a scalar
    found_inf  a scalar: 0, or else the gradient is not finite and nothing changes
    decay      of the average: ema ← decay·ema + (1 − decay)·weight
    returns    weight, exp_avg, exp_avg_sq, average and step afterwards, in their dtypes
    Raises InputError when the shapes disagree.
    """
    for name, other in (("gradient", gradient), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq),
                        ("average", average)):  # fmt: skip
        if other.shape != weight.shape:
            raise InputError(
                f"{name} has shape {list(other.shape)} and weight {list(weight.shape)}: they must agree"
            )
    if found_inf != 0:
        return weight, exp_avg, exp_avg_sq, average, step
    t = step + 1
    g = scale.to(gradient) * gradient
    m = beta1 * exp_avg + (1 - beta1) * g  # line 7 of algorithm 2
    v = beta2 * exp_avg_sq + (1 - beta2) * g.square()  # 8
    m_hat = m / (1 - beta1 ** t.double()).to(m)  # 9
    v_hat = v / (1 - beta2 ** t.double()).to(v)  # 10
    theta = weight - learning_rate * (m_hat / (v_hat.sqrt() + epsilon) + weight_decay * weight)  # 12
    ema = decay * average + (1 - decay) * theta
    return theta, m, v, ema, t
