"""Tensors that are computed when they are used."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from refimpl.storage import safetensors_file
from refimpl.storage.deferred import Deferred, in_float32
from refimpl.storage.streaming import load_into


class Counted:
    """A tensor of numbers, and how often it was computed."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.count = 0
        self.values = torch.arange(6.0).view(2, 3).to(dtype)
        self.tensor = Deferred((2, 3), dtype, self.compute)

    def compute(self) -> Tensor:
        self.count += 1
        return self.values.clone()


def test_what_a_header_needs_is_known_without_the_values() -> None:
    counted = Counted(torch.float16)
    tensor = counted.tensor
    assert (tuple(tensor.shape), tensor.dtype, tensor.ndim, len(tensor)) == ((2, 3), torch.float16, 2, 2)
    assert (tensor.numel(), tensor.element_size(), tensor.is_floating_point()) == (6, 2, True)
    assert repr(tensor) == "Deferred([2, 3], torch.float16)"
    assert tensor.device == torch.device("cpu")
    assert counted.count == 0


def test_every_operation_computes_with_the_values() -> None:
    counted = Counted()
    plain = counted.tensor.detach()
    assert type(plain) is Tensor
    assert torch.equal(plain, counted.values)
    assert torch.equal(counted.tensor + 1, counted.values + 1)
    assert torch.equal(torch.cat([counted.tensor, counted.values]), torch.cat([counted.values] * 2))
    assert torch.equal(torch.zeros(2, 3).copy_(counted.tensor), counted.values)
    assert torch.equal(counted.tensor[1, 1:], counted.values[1, 1:])
    assert counted.count == 5


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_file_is_written_from_them_one_after_another(dtype: torch.dtype | None, tmp_path: Path) -> None:
    counted = Counted()
    dtypes = {} if dtype is None else {"a": dtype}
    safetensors_file.write(tmp_path / "x.safetensors", {"a": counted.tensor}, dtypes=dtypes)
    read = safetensors_file.read(tmp_path / "x.safetensors")[0]["a"]
    assert torch.equal(read, counted.values.to(dtype or torch.float32))
    assert counted.count == 1


def test_a_network_is_filled_from_them() -> None:
    layer = torch.nn.Linear(3, 2, bias=False)
    counted = Counted(torch.bfloat16)
    load_into(layer, {"weight": counted.tensor}, "here")
    assert torch.equal(layer.weight, counted.values.float())


def test_float32_is_left_alone_and_the_rest_converted_when_used() -> None:
    values = torch.arange(3.0)
    assert in_float32(values) is values
    converted = in_float32(values.half())
    assert (type(converted), converted.dtype) == (Deferred, torch.float32)
    assert torch.equal(converted, values)
