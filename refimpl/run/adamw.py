"""AdamW and its learning rate (S §2.5; N §4 trains in float32 with TF32 matmuls)."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from refimpl.ops.adamw_ema import adamw_ema
from refimpl.run.optimizer_config import OptimizerConfig
from refimpl.storage.key_report import check_state
from refimpl.storage.local_tensors import divided_like, local, local_like


def make_adamw(parts: Iterable[tuple[float, Iterable[Tensor]]], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the parameters of each part; biases and norm gains are not decayed.

    parts  (own peak learning rate, trained parameters, or what this rank holds of them); a peak of 0 means the
           stage's, see `set_rates`
    """
    betas, groups = (config.beta1, config.beta2), parameter_groups(parts, config)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True)


def parameter_groups(
    parts: Iterable[tuple[float, Iterable[Tensor]]], config: OptimizerConfig
) -> list[dict[str, Any]]:
    """The groups of an optimizer: of each part the tensors that decay, and its vectors, which do not."""
    groups = []
    for peak, parameters in parts:
        trained = list(parameters)
        matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
        groups.append({"params": matrices, "weight_decay": config.weight_decay, "peak": peak})
        groups.append({"params": vectors, "weight_decay": 0.0, "peak": peak})
    return groups


def set_rates(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, stage_peak: float, step: int, steps: int
) -> float:
    """Sets every group's learning rate for optimizer step `step`, and returns the rate for the stage's peak."""
    for group in optimizer.param_groups:
        rate = learning_rate(config, group["peak"] or stage_peak, step, steps)
        if isinstance(group["lr"], Tensor):  # as torchao keeps it, so that a compiled step takes any rate
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    return learning_rate(config, stage_peak, step, steps)


def learning_rate(config: OptimizerConfig, peak: float, step: int, steps: int) -> float:
    """Learning rate of optimizer step `step` (0 … steps − 1) for a given peak."""
    rate = peak
    if config.decay == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / steps))
    if step < config.warmup_steps:
        rate *= (step + 1) / (config.warmup_steps + 1)
    return rate


@torch.no_grad()
def step_in_one_pass(
    optimizer: torch.optim.AdamW,
    averages: Mapping[Tensor, Tensor],
    scale: Tensor,
    skipped: Tensor,
    decay: float,
) -> None:
    """`optimizer.step()` with scaled gradients and the averages' step in one pass, by the compiled operation.

    The moments and step counts lie in the optimizer's state as its own step leaves them.
    averages  the moving average of every parameter, or empty: none are kept
    scale     what the gradients are multiplied by    skipped  0, or 1 to change nothing; scalars on the device
    decay     of the averages
    """
    from refimpl.ops.adamw_ema_kernel import adamw_ema_  # needs the compiled extension

    for group in optimizer.param_groups:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        states = [_moments_of(optimizer, parameter) for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw_ema_(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [averages[parameter] for parameter in parameters] if averages else [],
            [state["step"] for state in states],
            scale,
            skipped,
            group["lr"],
            beta1,
            beta2,
            group["eps"],
            group["weight_decay"],
            decay,
        )


@torch.no_grad()
def step_by_definition(
    optimizer: torch.optim.AdamW,
    averages: Mapping[Tensor, Tensor],
    scale: Tensor,
    skipped: Tensor,
    decay: float,
) -> None:
    """What `step_in_one_pass` does, by `refimpl.ops.adamw_ema`, an operation after the other.

    Of each the result is rounded once, so an element's bits do not depend on where its tensor begins and ends. Those
    of torch's fused step on the CPU do: it contracts v ← β₂·v + (1 − β₂)·g² in the last elements of a tensor, fewer
    than fill a vector, and not in the others.
    """
    never = torch.zeros(())  # on the host; what is skipped is decided on the device
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = _moments_of(optimizer, parameter)
            beta1, beta2 = group["betas"]
            weight, exp_avg, exp_avg_sq, average, step = adamw_ema(
                parameter,
                parameter.grad,
                state["exp_avg"],
                state["exp_avg_sq"],
                averages.get(parameter, parameter),
                state["step"],
                scale,
                never,
                group["lr"],
                beta1,
                beta2,
                group["eps"],
                group["weight_decay"],
                decay,
            )
            taken = [(parameter, weight), (state["exp_avg"], exp_avg), (state["exp_avg_sq"], exp_avg_sq)]
            taken += [(state["step"], step), *([(averages[parameter], average)] if averages else [])]
            for before, after in taken:
                before.copy_(torch.where(skipped > 0, before, after))


def _moments_of(optimizer: torch.optim.AdamW, parameter: Tensor) -> dict[str, Tensor]:
    """A parameter's moments and step count, zeros before its first step as torch makes them."""
    state = optimizer.state[parameter]
    if not state:
        dtype = torch.promote_types(parameter.dtype, torch.float32)  # of bfloat16 weights too
        state["step"] = torch.zeros((), device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)
    return state


def optimizer_state(
    parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.AdamW
) -> dict[str, Tensor]:
    """AdamW's moments and step count as named tensors: `<parameter>.exp_avg`, `.exp_avg_sq`, `.step`.

    Moments are divided among ranks as their parameters are; of those that this rank does not step, there are none.
    """
    return {
        f"{name}.{kind}": torch.as_tensor(value) if kind == "step" else divided_like(parameter, value)
        for name, parameter in parameters.items()
        for kind, value in optimizer.state.get(local(parameter), {}).items()
    }


def moments_to_fill(
    parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.AdamW
) -> dict[str, Tensor]:
    """As `optimizer_state`, zeros where there was no step yet, of all parameters that this optimizer steps."""
    stepped = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for parameter in parameters.values():
        if local(parameter) in stepped:
            _moments_of(optimizer, local(parameter))
    return optimizer_state(parameters, optimizer)


def moment_shapes(parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The names that `optimizer_state` gives, and the shapes of what they name."""
    return {
        f"{name}.{kind}": () if kind == "step" else tuple(parameter.shape)
        for name, parameter in parameters.items()
        for kind in ("exp_avg", "exp_avg_sq", "step")
    }


def load_optimizer_state(
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.AdamW,
    state: Mapping[str, Tensor],
    source: str,
) -> None:
    """Restores what `optimizer_state` returned; InputError lists every missing, unknown or misshapen tensor.

    state  moments that are whole, or divided among ranks as their parameters are
    """
    check_state(moment_shapes(parameters), state, source)
    for name, parameter in parameters.items():
        optimizer.state[local(parameter)] = {
            "step": state[f"{name}.step"].to(parameter.device),
            "exp_avg": _laid_out_as(parameter, state[f"{name}.exp_avg"]),
            "exp_avg_sq": _laid_out_as(parameter, state[f"{name}.exp_avg_sq"]),
        }


def _laid_out_as(parameter: Tensor, moment: Tensor) -> Tensor:
    """The moment on the parameter's device with its strides: fused AdamW walks both as they lie in memory."""
    part = local_like(parameter, moment)
    return torch.empty_like(local(parameter), dtype=part.dtype, requires_grad=False).copy_(part)
