"""Weights into networks: every dtype to every dtype, modules without memory, nothing done when something differs.

And tensors that are computed when they are used, which files are written from.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from refimpl.errors import InputError
from refimpl.storage import safetensors_file
from refimpl.storage.safetensors_file import CHUNK
from refimpl.storage.streaming import Deferred, in_float32, load_into

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def network() -> nn.Module:
    """A layer larger than a piece, one that is turned in memory, and a buffer."""
    module = nn.Sequential(nn.Linear(1025, CHUNK // 1024 + 1), nn.Conv2d(3, 2, 3), nn.BatchNorm1d(2))
    module[1].weight.data = module[1].weight.data.contiguous(memory_format=torch.channels_last)
    return module


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", FLOATS)
def test_every_dtype_goes_into_every_dtype(source: torch.dtype, target: torch.dtype, meta: bool) -> None:
    state = {key: value.clone() for key, value in network().to(source).state_dict().items()}
    state["2.num_batches_tracked"] += 7
    module = network().to(target)
    if meta:
        module = module.to("meta")
    module[0].requires_grad_(False)
    load_into(module, state, "file")
    for key, value in module.state_dict().items():
        expected = state[key].to(target) if state[key].is_floating_point() else state[key]
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected), key
    assert not module[0].weight.requires_grad
    assert module[1].weight.requires_grad
    assert module[2].running_mean.dtype == target
    assert not any(value.is_meta for value in module.state_dict().values())


def test_all_differences_are_listed_before_anything_is_copied() -> None:
    module = nn.Linear(2, 3)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(InputError) as error:
        load_into(module, {"weight": torch.zeros(3, 3), "biass": torch.zeros(3)}, "file.safetensors")
    assert str(error.value).splitlines()[:4] == [
        "file.safetensors does not fit this network; 3 of its tensors differ:",
        "  missing   bias [3]",
        "  unknown   biass [3] (the nearest is bias)",
        "  misshapen weight: the file has [3, 3], the network needs [3, 2]",
    ]
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_float16_that_would_overflow_is_refused() -> None:
    with pytest.raises(InputError, match="file: bias has values beyond float16's 65504"):
        load_into(nn.Linear(1, 1).half(), {"bias": torch.tensor([7e4]), "weight": torch.ones(1, 1)}, "file")


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
