"""Stochastic rounding: a neighbour always, the right one on average, the same one whenever it is asked for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from refimpl.errors import InputError
from refimpl.ops.stochastic_rounding import AT_ONCE, round_by, round_stochastically, rounding_key
from tests.tolerances import STANDARD_ERRORS

EVERY_DRAW = torch.arange(2**16)
LARGEST = torch.finfo(torch.bfloat16).max
KEY = rounding_key(0, 1, "unet.a")
finite = st.floats(-LARGEST, LARGEST, width=32)


def neighbours(x: float) -> tuple[float, float]:
    """The bfloat16 values next to a float32, towards zero and away from it; both are x where it is one."""
    bits = torch.tensor(x).view(torch.int32)
    down = bits >> 16 << 16
    up = down if down == bits else down + 2**16
    return float(down.view(torch.float32)), float(up.view(torch.float32))


@given(finite)
def test_the_mean_over_all_draws_is_the_number_and_each_result_a_neighbour(x: float) -> None:
    """65,536 draws, so the expectation is a sum and not an estimate; float64 adds these exactly."""
    results = round_by(torch.full((2**16,), x), EVERY_DRAW)
    down, up = neighbours(x)
    assert results.dtype == torch.bfloat16
    assert set(results.double().unique().tolist()) <= {down, up}
    share = int((results.double() == up).sum()) / 2**16 if up != down else 0.0
    assert down + share * (up - down) == torch.tensor(x).double().item()


@given(finite)
def test_what_bfloat16_represents_stays(x: float) -> None:
    exact = torch.tensor(x).bfloat16().float()
    assert torch.equal(round_by(exact.expand(2**16).contiguous(), EVERY_DRAW).float(), exact.expand(2**16))


@pytest.mark.parametrize("x", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_stays(x: float) -> None:
    results = round_by(torch.full((2**16,), x), EVERY_DRAW).float()
    assert torch.equal(results.isnan(), torch.full((2**16,), x != x))
    assert x != x or bool((results == x).all())


def test_beyond_the_largest_the_neighbour_is_infinite() -> None:
    x = torch.full((2**16,), torch.finfo(torch.float32).max)
    assert set(round_by(x, EVERY_DRAW).double().tolist()) == {LARGEST, float("inf")}


def test_the_keyed_draws_are_unbiased() -> None:
    """Over many elements the mean error is within the standard errors of a uniform fraction's coin."""
    x = torch.linspace(1, 2, 2**18)
    error = (round_stochastically(x, KEY).double() - x.double()) / 2**-7  # in units of bfloat16's last place
    assert abs(float(error.mean())) <= STANDARD_ERRORS * float(error.std()) / len(x) ** 0.5
    assert float(error.abs().max()) < 1


@given(st.integers(0, 2**40), st.integers(1, 2**32 - 1))
def test_draws_depend_on_seed_step_and_parameter_alone(seed: int, step: int) -> None:
    x = torch.linspace(0.1, 0.9, 257)
    here = round_stochastically(x, rounding_key(seed, step, "a"))
    assert torch.equal(here, round_stochastically(x, rounding_key(seed, step, "a")))
    others = (seed + 1, step, "a"), (seed, step % (2**32 - 1) + 1, "a"), (seed, step, "b")
    assert not any(torch.equal(here, round_stochastically(x, rounding_key(*other))) for other in others)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3, 4, 5)])
def test_an_element_s_draw_is_its_place_s(shape: tuple[int, ...]) -> None:
    """Whatever the memory format, and whatever else is rounded with it."""
    x = torch.linspace(-3, 3, torch.Size(shape).numel()).view(shape)
    wanted = round_stochastically(x, KEY)
    assert wanted.shape == x.shape
    longer = round_stochastically(torch.cat([x.flatten(), torch.ones(9)]), KEY)
    assert torch.equal(wanted.flatten(), longer[: x.numel()])
    if x.ndim == 4:
        assert torch.equal(wanted, round_stochastically(x.to(memory_format=torch.channels_last), KEY))


def test_many_elements_are_rounded_in_pieces_with_the_draws_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.linspace(1, 2, 100)
    wanted: Tensor = round_stochastically(x, KEY)
    assert AT_ONCE % 8 == 0
    monkeypatch.setattr("refimpl.ops.stochastic_rounding.AT_ONCE", 16)
    assert torch.equal(round_stochastically(x, KEY), wanted)


def test_another_dtype_is_refused() -> None:
    with pytest.raises(InputError, match=r"takes float32, not torch\.float64"):
        round_stochastically(torch.ones(2, dtype=torch.float64), KEY)
