"""Copies that the host does not wait for."""

import torch

from refimpl.data.loading.transfer import onto


def test_on_its_device_a_tensor_stays_as_it_is() -> None:
    tensor = torch.arange(3)
    assert onto(torch.device("cpu"), tensor) is tensor
    away = torch.empty(3, device="meta")
    assert onto(torch.device("meta"), away) is away


def test_on_another_device_it_has_the_same_shape_and_dtype() -> None:
    there = onto(torch.device("meta"), torch.zeros(2, 3, dtype=torch.bool))
    assert (there.device.type, there.shape, there.dtype) == ("meta", (2, 3), torch.bool)
