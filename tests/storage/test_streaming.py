"""Weights into networks: every dtype to every dtype, modules without memory, nothing done when something differs."""

import pytest
import torch
from torch import nn

from refimpl.errors import InputError
from refimpl.storage.safetensors_file import CHUNK
from refimpl.storage.streaming import load_into

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
