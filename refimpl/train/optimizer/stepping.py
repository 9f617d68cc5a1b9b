"""A step of any optimizer, a bucket of parameters at a time: on weights kept in bfloat16, within the backward pass.

The default, AdamW on float32 weights after the backward pass, is not here but in `refimpl.train.update`, where
nothing waits for the device. Here the host reads once a step whether to take it, as no library can be told on the
device.

Weights of bfloat16 are stepped in float32: a copy of a bucket's weights and gradients is made, the optimizer steps it
with float32 moments, and the new weights are rounded at random (`refimpl.ops.stochastic_rounding`) into their place.

In the backward pass a bucket of parameters is stepped as soon as their gradients are whole, so that there are never
more gradients than a bucket's. By the time the whole gradient's norm is known, most of the step was taken. So it
can't be clipped, and a step whose gradient isn't finite can't be left out: the run ends there, and such weights are
never saved.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from refimpl.ops.stochastic_rounding import round_stochastically, rounding_key
from refimpl.run.config import Config
from refimpl.train.setup.trainable import Part
from refimpl.train.sharding.flat import BUCKET, in_buckets
from refimpl.train.sharding.kinds import Sharding, stepped


def make_stepping(
    optimizer: torch.optim.Optimizer, config: Config, parts: Sequence[Part], sharding: Sharding, start: int
) -> "Stepping | None":
    """How the settings' optimizer steps; None for AdamW on float32 weights after the backward pass.

    start  optimizer steps taken before
    """
    train, kind = config.train, config.optimizer.kind
    if kind == "adamw" and train.weight_dtype == "fp32" and not train.step_in_backward:
        return None
    names = {
        tensor: f"{part.name}/{name}" for part in parts for name, tensor in stepped(sharding, part).items()
    }
    eager = kind == "adamw8bit" and train.compile == "none"
    stepping = Stepping(optimizer, names, train.seed, start, kind == "prodigy", eager)
    if train.step_in_backward:
        stepping.step_in_backward()
    return stepping


class Stepping:
    """An optimizer, and what a step of it does besides."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: Mapping[Tensor, str],
        seed: int,
        start: int = 0,
        at_once: bool = False,
        eager: bool = False,
    ):
        """Begins before step start + 1.

        names    the tensors that it steps, and the names that key their rounding
        at_once  whether the optimizer reckons over all parameters together, so that it can't take them in buckets
        eager    whether what torchao would compile of its step runs as it is written
        """
        self._optimizer, self._names, self._seed = optimizer, names, seed
        self._step, self._at_once, self._eager = start + 1, at_once, eager
        self._in_backward = False
        self._norms: dict[Tensor, Tensor] = {}
        self._waiting = 0  # bytes of the gradients that are whole and not stepped yet

    def step_in_backward(self) -> None:
        """From now on, has the backward pass step each bucket of parameters."""
        self._in_backward = True
        for parameter in self._names:
            parameter.register_post_accumulate_grad_hook(self._gradient_is_whole)

    @torch.no_grad()
    def finish(
        self, trained: Sequence[Tensor], clip_norm: float, agree: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Takes the step, or what is left of it, and clears the gradients.

        trained  every trained parameter, those of other ranks too
        agree    the gradient's norm → 1 to skip the step, 0 to take it, as `refimpl.train.update` is given it
        returns  the gradient's norm before clipping, and what was agreed; scalars on the device
        """
        gradients = [parameter for parameter in trained if parameter.grad is not None]
        self._norms |= {parameter: _norm(parameter) for parameter in gradients}
        norm = torch.linalg.vector_norm(torch.stack([self._norms[p] for p in trained if p in self._norms]))
        skipped = agree(norm)
        if self._in_backward:
            self._take()
        elif not skipped.item():
            if clip_norm:
                torch.nn.utils.clip_grads_with_norm_(gradients, clip_norm, norm)
            self._take()
        for parameter in trained:
            parameter.grad = None
        self._norms, self._step, self._waiting = {}, self._step + 1, 0
        return norm, skipped

    def _gradient_is_whole(self, parameter: Tensor) -> None:
        """Called by autograd once it has stored a parameter's gradient."""
        assert parameter.grad is not None  # it was just stored
        self._norms[parameter] = _norm(parameter)
        self._waiting += parameter.grad.nbytes
        if self._waiting >= BUCKET:
            self._take()
            self._waiting = 0

    @torch.no_grad()
    def _take(self) -> None:
        """Steps every parameter that has a gradient, and clears it."""
        waiting = [tensor for tensor in self._names if tensor.grad is not None]
        for bucket in [waiting] if self._at_once else in_buckets(waiting, BUCKET):
            eager = torch.compiler.set_stance("force_eager") if self._eager else nullcontext()
            with self._in_float32(bucket), eager:
                self._optimizer.step()

    @contextmanager
    def _in_float32(self, bucket: Sequence[Tensor]) -> Iterator[None]:
        """Within the context, the optimizer has the bucket alone, of bfloat16 tensors float32 copies in their places.

        The tensors themselves keep their dtype: another would give them new places in autograd's graph, without the
        hooks by which DDP sums their gradients.
        """
        groups, state = self._optimizer.param_groups, self._optimizer.state
        own = [group["params"] for group in groups]
        held = {tensor: tensor.float() if tensor.dtype == torch.bfloat16 else tensor for tensor in bucket}
        copies = {tensor: copy for tensor, copy in held.items() if copy is not tensor}
        for group in groups:
            group["params"] = [held[tensor] for tensor in group["params"] if tensor in held]
        for tensor, copy in copies.items():
            assert tensor.grad is not None  # every tensor of a bucket has one
            copy.grad, tensor.grad = tensor.grad.float(), None
            state[copy] = state.pop(tensor, {})
        yield
        for group, parameters in zip(groups, own, strict=True):
            group["params"] = parameters
        for tensor, copy in copies.items():
            tensor.copy_(
                round_stochastically(copy, rounding_key(self._seed, self._step, self._names[tensor]))
            )
            state[tensor] = state.pop(copy)
        for tensor in bucket:
            tensor.grad = None


def _norm(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
