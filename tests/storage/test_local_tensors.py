"""Exchanging tensors: plainly where their dtypes agree, by their upper halves where one is bfloat16."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from refimpl.storage.local_tensors import exchange

finite = st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=8)


@given(finite)
def test_tensors_of_one_dtype_exchange_their_values(values: list[float]) -> None:
    first, second = torch.tensor(values), torch.arange(len(values), dtype=torch.float32)
    exchange([(first, second)])
    assert torch.equal(second, torch.tensor(values))
    assert torch.equal(first, torch.arange(len(values), dtype=torch.float32))


@given(finite, finite)
def test_bfloat16_takes_the_rounded_values_and_gives_them_back(low: list[float], wide: list[float]) -> None:
    size = min(len(low), len(wide))
    weights, averages = torch.tensor(low[:size]).bfloat16(), torch.tensor(wide[:size])
    held, kept = weights.clone(), averages.clone()
    exchange([(weights, averages)])
    error = (weights.double() - kept.double()).abs()
    nearest = (kept.bfloat16().double() - kept.double()).abs()
    assert torch.equal(error, nearest) or not kept.bfloat16().isfinite().all()
    rounded = (
        averages.view(torch.int32) + 0x8000 >> 16 << 16
    )  # the weights, with the averages' last bits below them
    assert torch.equal(rounded.view(torch.float32), held.float())
    exchange([(weights, averages)])
    assert torch.equal(weights, held)
    assert torch.equal(averages.view(torch.int32), kept.view(torch.int32))


def test_the_memory_order_of_the_two_may_differ() -> None:
    weights = torch.linspace(-1, 1, 48).view(2, 3, 2, 4).bfloat16().to(memory_format=torch.channels_last)
    averages = torch.linspace(1, 2, 48).view(2, 3, 2, 4)
    held, kept = weights.clone(), averages.clone()
    exchange([(weights, averages)])
    assert torch.equal(weights, kept.bfloat16())
    exchange([(weights, averages)])
    assert torch.equal(weights, held)
    assert torch.equal(averages, kept)
