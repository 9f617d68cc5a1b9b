"""Tensors on their way to a GPU, without the host waiting for it."""

import torch
from torch import Tensor


def onto(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor on the given device; one that lies on the CPU is copied without waiting for the device.

    Such a copy starts from page-locked memory and takes its turn on the current stream, as a kernel does. A copy
    from ordinary memory would hold the host until everything queued before it is done.
    """
    if tensor.device.type != "cpu":
        return tensor.to(device)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
