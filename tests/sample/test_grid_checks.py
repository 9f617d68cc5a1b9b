"""Invalid grids raise one message that says where the fault is and what to do."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given

from refimpl.errors import InputError
from refimpl.sample.grid_checks import check_grid, check_steps
from tests.strategies import grid_levels


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "shape"),
        ([0.0], "shape"),
        ([[2.0, 0.0]], "shape"),
        ([2.0, 1.0], "last entry is 1.0"),
        ([2.0, -0.5], "last entry is -0.5"),
        ([1.0, 2.0, 0.0], "entries 0 and 1 are 1.0 and 2.0"),
        ([2.0, 2.0, 0.0], "entries 0 and 1 are 2.0 and 2.0"),
        ([2.0, -1.0, 0.0], "entries 1 and 2"),
        ([math.nan, 1.0, 0.0], "entry 0 is NaN"),
        ([2.0, math.nan, 0.0], "entry 1 is NaN"),
        ([2.0, 1.0, math.nan], "entry 2 is NaN"),
        ([2.0, math.inf, 0.0], "entries 0 and 1"),
        ([math.inf, math.inf, 0.0], "entries 0 and 1"),
        ([2.0, 0.0, 0.0], "entries 1 and 2"),
        ([True, False], "dtype"),
        ([1j, 0j], "dtype"),
    ],
)
def test_bad_grids_are_refused(levels, message):
    with pytest.raises(InputError, match=message):
        check_grid(torch.tensor(levels))


@given(grid_levels())
def test_good_grids_pass_unchanged(grid):
    assert torch.equal(check_grid(grid), grid)
    assert check_grid(grid.clone().requires_grad_()).requires_grad is False


def test_grids_of_other_dtypes_become_float64():
    assert check_grid(torch.tensor([3, 1, 0])).dtype == torch.float64
    assert check_grid(torch.tensor([3.0, 1.0, 0.0], dtype=torch.bfloat16)).tolist() == [3, 1, 0]


def test_steps_may_be_any_whole_number():
    assert check_steps(np.int64(28)) == 28
    assert check_steps(torch.tensor(28)) == 28
    for wrong in (28.0, "28", None):
        with pytest.raises(InputError, match="not a whole number"):
            check_steps(wrong)
