"""An optimizer's state as named tensors, for checkpoints: that of AdamW, and that of every other kind."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from refimpl.run.adamw import moment_shapes, moments_to_fill
from refimpl.storage.key_report import check_state
from refimpl.train.optimizer.kinds import ESTIMATE, ESTIMATED, kept

Parameters = Mapping[str, nn.Parameter]


def named_state(parameters: Parameters, optimizer: torch.optim.Optimizer, kind: str) -> dict[str, Tensor]:
    """What a checkpoint holds of a part's optimizer state: `<parameter>.<name>`, the names being those of `kept`.

    Prodigy's estimate of the rate, which is one for all parameters, is `estimate`: d, d_max, d_numerator and k.
    The tensors are the optimizer's own, to be read or filled in place, except for the estimate: see `take_estimate`.
    Of parameters that this rank does not step, there is none.
    """
    if kind == "adamw":
        assert isinstance(optimizer, torch.optim.AdamW)
        return moments_to_fill(parameters, optimizer)  # there are none before a first step is taken
    state = {
        f"{name}.{key}": value
        for name, parameter in parameters.items()
        for key, value in _tensors(optimizer.state.get(parameter, {}))
    }
    if kind == "prodigy":
        group = optimizer.param_groups[0]
        state[ESTIMATE] = torch.tensor([float(group[name]) for name in ESTIMATED], dtype=torch.float64)
    return state


def take_estimate(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Makes Prodigy go on from the estimate in a `named_state` that was filled in place, as all else was."""
    if ESTIMATE not in state:
        return
    d, d_max, d_numerator, k = state[ESTIMATE].tolist()
    for group in optimizer.param_groups:
        group |= {"d": d, "d_max": d_max, "d_numerator": d_numerator, "k": int(k)}


def check_optimizer_state(
    parameters: Mapping[str, Tensor], kind: str, found: Mapping[str, Tensor], source: str
) -> None:
    """Raises InputError listing every tensor that this kind of optimizer would not have so.

    found  what a file holds, on any device
    """
    if kind == "adamw":
        check_state(moment_shapes(parameters), found, source)
        return
    expected = {
        f"{name}.{tensor.name}": tensor
        for name, parameter in parameters.items()
        for tensor in kept(kind, parameter.shape)
    }
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    if kind == "prodigy":
        shapes[ESTIMATE] = (len(ESTIMATED),)
    integers = {name for name, tensor in expected.items() if not tensor.dtype.is_floating_point}
    check_state(shapes, found, source, integers)


def _tensors(state: Mapping[str, object]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a parameter's state; of a moment of 8 bits, its codes and their scales."""
    for name, value in state.items():
        if hasattr(value, "codes"):
            yield f"{name}.codes", value.codes  # pyright: ignore[reportAttributeAccessIssue]
            yield f"{name}.scale", value.scale  # pyright: ignore[reportAttributeAccessIssue]
        elif isinstance(value, Tensor):
            yield name, value
