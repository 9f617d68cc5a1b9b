"""What follows the gradient, in three forms over the same tensors: the columns of `adamw_ema` and of gpu_update.py.

torch        clip_grad_norm_, fused AdamW, torch._foreach_lerp_: as diffusers' training scripts do it
grad_scale   fused AdamW divides by the clipping itself (and writes the gradients back); torch._foreach_lerp_
kernel       the norm by torch, all the rest in one pass of ours
kernel alone, torch alone   the same without norm and clipping: our pass; fused AdamW and torch._foreach_lerp_

Bytes are counted, not measured: float32 tensors that each form must read or write, per parameter.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from refimpl.model.unet import UNet, UNetConfig
from refimpl.run.adamw import make_adamw, step_in_one_pass
from refimpl.run.optimizer_config import OptimizerConfig
from tests.ops.adamw_checks import Call, check_adamw_ema

CLIP_NORM, DECAY = 1.0, 0.9999
NORM_EPSILON = 1e-6  # of clip_grad_norm_
BYTES = {
    "torch": 52,  # norm 4, clipping 8, AdamW 28, average 12
    "grad_scale": 48,  # norm 4, AdamW 28 and the gradients written back 4, average 12
    "kernel": 40,  # norm 4; weights, moments and average 8 each, gradients 4
    "torch alone": 40,
    "kernel alone": 36,
}


@dataclass(frozen=True)
class Trained:
    """Weights with gradients and averages, under AdamW with a state."""

    weights: list[nn.Parameter]
    averages: dict[Tensor, Tensor]
    optimizer: torch.optim.AdamW

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return sum(weight.numel() for weight in self.weights)


def sdxl_shapes(config: UNetConfig, most: float = math.inf) -> list[torch.Size]:
    """Shapes of a UNet's tensors, in its order, as many as have at most so many elements together."""
    with torch.device("meta"):
        shapes = [parameter.shape for parameter in UNet(config).parameters()]
    taken, total = [], 0
    for shape in shapes:
        if total + shape.numel() <= most:
            taken.append(shape)
            total += shape.numel()
    return taken


def trained(shapes: Sequence[torch.Size], device: str) -> Trained:
    """Normal values; the first step makes the moments."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(shape: torch.Size) -> Tensor:
        return torch.empty(shape, device=device).normal_(generator=generator)

    weights = [nn.Parameter(normal(shape)) for shape in shapes]
    for weight in weights:
        weight.grad = normal(weight.shape)
    averages: dict[Tensor, Tensor] = {weight: weight.detach().clone() for weight in weights}
    state = Trained(weights, averages, make_adamw([(0.0, weights)], OptimizerConfig()))
    state.optimizer.step()
    return state


def columns(state: Trained) -> dict[str, Callable[[], object]]:
    """Each form as a function; every call takes one step of the same tensors."""
    weights, averages, optimizer = state.weights, list(state.averages.values()), state.optimizer
    values = [weight.detach() for weight in weights]
    lerp_ = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]
    one, zero = torch.ones((), device=weights[0].device), torch.zeros((), device=weights[0].device)

    def norm() -> Tensor:
        return torch.nn.utils.get_total_norm([weight.grad for weight in weights])  # pyright: ignore

    def skipped(norm: Tensor) -> Tensor:
        return norm.isfinite().logical_not().float()

    @torch.no_grad()
    def average() -> None:
        lerp_(averages, values, 1 - DECAY)

    def torch_step() -> None:
        torch.nn.utils.clip_grad_norm_(weights, CLIP_NORM)
        optimizer.step()
        average()

    def torch_alone() -> None:
        optimizer.step()
        average()

    def grad_scale_step() -> None:
        total = norm()
        optimizer.grad_scale = ((total + NORM_EPSILON) / CLIP_NORM).clamp(min=1.0)  # pyright: ignore
        optimizer.found_inf = skipped(total)  # pyright: ignore
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf  # pyright: ignore
        average()

    def kernel_step() -> None:
        total = norm()
        scale = (CLIP_NORM / (total + NORM_EPSILON)).clamp(max=1.0)
        step_in_one_pass(optimizer, state.averages, scale, skipped(total), DECAY)

    return {
        "torch": torch_step,
        "grad_scale": grad_scale_step,
        "kernel": kernel_step,
        "torch alone": torch_alone,
        "kernel alone": lambda: step_in_one_pass(optimizer, state.averages, one, zero, DECAY),
    }


def assert_agreement(shapes: Sequence[torch.Size], device: str) -> None:
    """The check of the test suite on tensors of these shapes."""
    from refimpl.ops.adamw_ema_kernel import adamw_ema_

    state = trained(shapes, device)
    kept = [state.optimizer.state[weight] for weight in state.weights]
    call = Call(
        [weight.detach() for weight in state.weights],
        [weight.grad for weight in state.weights if weight.grad is not None],
        [moments["exp_avg"] for moments in kept],
        [moments["exp_avg_sq"] for moments in kept],
        list(state.averages.values()),
        [moments["step"] for moments in kept],
        torch.full((), 0.5, device=device),
        torch.zeros((), device=device),
        (1e-4, 0.9, 0.999, 1e-8, 0.01, DECAY),
    )
    check_adamw_ema(adamw_ema_, call)
