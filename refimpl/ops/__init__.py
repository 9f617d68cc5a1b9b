"""The operations that a training step spends its memory traffic on, behind one explicit backend."""

import importlib
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from refimpl.errors import InputError
from refimpl.ops import reference

BUILD_COMMAND = "pip install --no-build-isolation -e ."


class KernelNotBuilt(InputError, RuntimeError):
    """The backend "kernel" was requested, but its compiled extension is missing."""


class Ops(NamedTuple):
    """The operations of one backend; refimpl.ops.reference defines what each of them returns."""

    add_noise: Callable[..., Tensor]
    v_loss: Callable[..., Tensor]
    add_keyed_noise: Callable[..., Tensor]
    keyed_v_loss: Callable[..., Tensor]
    channel_moments: Callable[..., tuple[Tensor, Tensor, Tensor]]
    keyed_normal: Callable[..., Tensor]
    geglu: Callable[[Tensor], Tensor]
    group_norm_silu: Callable[[Tensor, Tensor, Tensor, int, float], Tensor]
    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]


def load_ops(backend: str) -> Ops:
    """The operations of a backend: "reference" (torch, the definition) or "kernel" (compiled from csrc/).

    Raises InputError on an unknown backend, and KernelNotBuilt, with the command that builds it, when the
    compiled extension is missing. There is no fallback from one to the other.
    """
    if backend == "reference":
        return Ops(*(getattr(reference, name) for name in Ops._fields))
    if backend != "kernel":
        raise InputError(f"unknown backend {backend!r} for the operations: choose 'reference' or 'kernel'")
    try:
        kernel = importlib.import_module("refimpl.ops.kernel")
    except ImportError as error:
        raise KernelNotBuilt(
            f"the backend 'kernel' is not built ({error}): run `{BUILD_COMMAND}` in the repository, "
            "or choose the backend 'reference'"
        ) from error
    return Ops(*(getattr(kernel, name) for name in Ops._fields))
