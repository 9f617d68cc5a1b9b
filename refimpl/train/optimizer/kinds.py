"""The optimizers that a run can name, and what each keeps for a parameter (S §2.5 and N §4 name none).

adamw      Loshchilov & Hutter 2019: two float32 moments of every weight. The papers' float32 run, and the default.
adamw8bit  the same with moments of 8 bits in blocks of 256 (Dettmers et al. 2021, "8-bit Optimizers via Block-wise
           Quantization"), by torchao
adafactor  Shazeer & Stern 2018, by torch: of the second moment the means of rows and columns, no first moment
prodigy    Mishchenko & Defazio 2023, by prodigyopt: AdamW that estimates its rate as it goes; four float32 values of
           every weight
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refimpl.errors import InputError
from refimpl.run.adamw import make_adamw, parameter_groups
from refimpl.run.here.machine import library_problem
from refimpl.run.optimizer_config import OptimizerConfig

BLOCK = 256  # elements that share a scale, torchao's default
LEAST_QUANTIZED = 4096  # elements; torchao keeps the moments of smaller tensors, and of odd sizes, in float32
MAP_ENTRIES = 256  # of the table from codes to values, which torchao keeps with every moment

ESTIMATE = "estimate"  # Prodigy's numbers for all parameters together, as a checkpoint names them
ESTIMATED = ("d", "d_max", "d_numerator", "k")  # these four, of a group


@dataclass(frozen=True)
class Kept:
    """A tensor that an optimizer keeps for a parameter."""

    name: str
    """Its name in checkpoints, after the parameter's."""
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def nbytes(self) -> int:
        """Its memory."""
        return math.prod(self.shape) * self.dtype.itemsize


def check_library(config: OptimizerConfig) -> None:
    """Raises InputError, with the line that installs it, when the optimizer's library is absent."""
    problem = library_problem(config.kind)
    if problem:
        raise InputError(problem)


def make_optimizer(
    parts: Iterable[tuple[float, Iterable[Tensor]]], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """The optimizer that the settings name, over the parameters of each part, after `check_library`.

    parts  as `make_adamw` takes them; biases and norm gains are not decayed
    Its state exists from the beginning, in float32 whatever the weights are kept in, so that a step that is skipped
    leaves a whole checkpoint. AdamW's does too once its first step was taken or skipped.
    """
    if config.kind == "adamw":
        return make_adamw(parts, config)
    groups = parameter_groups(parts, config)
    make = {"adamw8bit": _adamw8bit, "adafactor": _adafactor, "prodigy": _prodigy}[config.kind]
    optimizer = make([group for group in groups if group["params"]], config)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = _new_state(config.kind, parameter)
    return optimizer


def kept(kind: str, shape: Sequence[int]) -> list[Kept]:
    """What a checkpoint holds of the state of a parameter of this shape."""
    shape = tuple(shape)
    size, step = math.prod(shape), Kept("step", ())
    if kind == "adafactor":
        if len(shape) < 2:
            return [step, Kept("variance", shape)]
        rows, columns = (*shape[:-1], 1), (*shape[:-2], 1, shape[-1])
        return [step, Kept("row_var", rows), Kept("col_var", columns)]
    if kind == "prodigy":
        flat = [Kept(name, (size,)) for name in ("s", "p0")]
        return [step, *flat, *(Kept(name, shape) for name in ("exp_avg", "exp_avg_sq"))]
    if kind == "adamw8bit" and is_quantized(size):
        moments = [
            (Kept(f"{name}.codes", shape, torch.uint8), Kept(f"{name}.scale", (size // BLOCK,)))
            for name in ("exp_avg", "exp_avg_sq")
        ]
        return [step, *(tensor for moment in moments for tensor in moment)]
    return [step, *(Kept(name, shape) for name in ("exp_avg", "exp_avg_sq"))]


def state_bytes(kind: str, shape: Sequence[int]) -> int:
    """Memory of the state of a parameter of this shape, without its step count, which lies on the host."""
    maps = 2 * 4 * MAP_ENTRIES if kind == "adamw8bit" and is_quantized(math.prod(shape)) else 0
    return maps + sum(tensor.nbytes for tensor in kept(kind, shape) if tensor.name != "step")


def is_quantized(size: int) -> bool:
    """Whether the moments of a tensor of so many elements have 8 bits."""
    return size >= LEAST_QUANTIZED and size % BLOCK == 0


def _new_state(kind: str, parameter: Tensor) -> dict[str, Any]:
    """The state that the library would make before a parameter's first step, for a float32 copy of it."""
    state: dict[str, Any] = {"step": torch.zeros(())}
    if kind == "adamw8bit" and is_quantized(parameter.numel()):
        from torchao.optim.subclass_8bit import OptimState8bit  # pyright: ignore[reportMissingImports]

        for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
            state[name] = OptimState8bit.zeros(
                parameter.shape, signed, BLOCK, parameter.device, torch.float32
            )
        return state
    for tensor in kept(kind, parameter.shape):
        if tensor.name == "p0":
            state["p0"] = parameter.detach().flatten().float().clone()
        elif tensor.shape == parameter.shape:
            state[tensor.name] = torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
        elif tensor.name != "step":
            state[tensor.name] = torch.zeros(tensor.shape, device=parameter.device)
    return state


def _adafactor(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups, lr=config.learning_rate)


def _adamw8bit(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

    betas = (config.beta1, config.beta2)
    return AdamW8bit(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, block_size=BLOCK)


def _prodigy(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    from prodigyopt import Prodigy

    return Prodigy(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon,
        use_bias_correction=True, safeguard_warmup=config.warmup_steps > 0,
    )  # fmt: skip
