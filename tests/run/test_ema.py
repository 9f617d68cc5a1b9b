"""The moving average of the weights (S §2.5)."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refimpl.errors import InputError
from refimpl.run.ema import ema_decay, ema_start, ema_update, views_of_one_buffer
from tests.tolerances import FLOAT32_ROUNDING, FLOAT64_ROUNDING


def test_decay_ramps_up() -> None:
    assert ema_decay(1, 0.9999) == pytest.approx(2 / 11, rel=FLOAT64_ROUNDING)
    assert ema_decay(10, 0.9999) == pytest.approx(11 / 20, rel=FLOAT64_ROUNDING)
    assert ema_decay(10**6, 0.9999) == 0.9999
    decays = [ema_decay(step, 0.995) for step in range(1, 3000)]
    assert decays == sorted(decays)
    assert decays[-1] == 0.995


@given(st.floats(0, 0.9999), st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=6))
def test_average_is_the_recursion(decay: float, weights: list[float]) -> None:
    """ema ← d·ema + (1 − d)·w, in float64 beside it; with decay 0 it is the last weights exactly."""
    module = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(0.5)
    average, wanted = ema_start(module), 0.5
    for step, w in enumerate(weights, start=1):
        with torch.no_grad():
            module.weight.fill_(w)
        ema_update(average, module, step, decay)
        d = min(decay, (1 + step) / (10 + step))
        wanted = d * wanted + (1 - d) * w
    assert abs(float(average["weight"]) - wanted) <= FLOAT32_ROUNDING
    if decay == 0:
        assert torch.equal(average["weight"], module.weight.detach())


@pytest.mark.parametrize("step", [1, 7, 8, 1000])  # the share passes 1/2 at 8
def test_a_share_that_lies_on_the_device_gives_the_same_bits(step: int) -> None:
    """Of one tensor at a time, of all with one share, and of all with views of one buffer of shares, as on a GPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.Linear(4, 6), torch.nn.PReLU())
        other = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.Linear(4, 6), torch.nn.PReLU())
    other = other.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    averages = [ema_start(other) for _ in range(4)]
    share = 1 - ema_decay(step, 0.995)
    weights = module.state_dict()
    for name, value in weights.items():
        averages[0][name].lerp_(value, share)
    ema_update(averages[1], module, step, 0.995)
    ema_update(averages[2], module, step, 0.995, torch.tensor(0.0))
    targets = list(averages[3].values())
    shares = views_of_one_buffer(targets, torch.tensor(share))
    for target, each in zip(targets, shares, strict=True):
        assert (each.shape, each.stride()) == (target.shape, target.stride())
    torch._foreach_lerp_(targets, list(weights.values()), shares)
    for average in averages[1:]:
        assert all(torch.equal(average[name], averages[0][name]) for name in weights)
    before = {name: value.clone() for name, value in averages[2].items()}
    ema_update(averages[2], module, step, 0.995, torch.tensor(1.0))
    assert all(torch.equal(averages[2][name], before[name]) for name in weights)


def test_an_average_of_nothing_is_nothing() -> None:
    ema_update({}, torch.nn.ReLU(), 1, 0.5, torch.tensor(0.0))
    assert views_of_one_buffer([], torch.tensor(1.0)) == []


def test_start_is_a_float32_copy() -> None:
    module = torch.nn.Linear(2, 2).to(torch.bfloat16)
    average = ema_start(module)
    before = average["weight"].clone()
    assert average["weight"].dtype == torch.float32
    with torch.no_grad():
        module.weight.add_(1)
    assert torch.equal(average["weight"], before)
    ema_update(average, module, 1, 0.5)
    assert not average["weight"].requires_grad


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decay_outside_0_to_1_is_refused(decay: float) -> None:
    module = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match=f"EMA decay {decay} is outside"):
        ema_update(ema_start(module), module, 1, decay)


@pytest.mark.parametrize("skipped", [None, 0.0, 1.0])
def test_weights_of_bfloat16_are_averaged_in_float32(
    skipped: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As float32 weights of the same values are, however many are copied at a time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wide = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 7), torch.nn.Linear(7, 2))
    low = copy.deepcopy(wide)
    for parameter in low.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.bfloat16()
    for parameter, value in zip(wide.parameters(), low.parameters(), strict=True):
        parameter.data.copy_(value.data)
    averages = []
    for module, copied in ((wide, 2**26), (low, 2**26), (low, 1), (low, 70)):
        monkeypatch.setattr("refimpl.run.ema.COPIED", copied)
        average = {name: torch.zeros_like(value) for name, value in ema_start(module).items()}
        flag = None if skipped is None else torch.tensor(skipped)
        ema_update(average, module, 3, 0.9, flag)
        assert all(value.dtype == torch.float32 for value in average.values())
        averages.append(average)
    for average in averages[1:]:
        assert all(torch.equal(average[name], value) for name, value in averages[0].items())
