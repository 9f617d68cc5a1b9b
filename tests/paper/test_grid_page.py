"""docs/grids.md holds the computed tables, and the promises that it makes of them."""

import json
from pathlib import Path

import pytest

from refimpl.commands.paper.figures import grid_files
from refimpl.paper.grid_page import (
    CANVASES,
    PROMISED,
    SHOWN_CANVAS,
    WITHOUT_LAST,
    grid_numbers,
    grid_tables,
    worst_covariance,
)
from refimpl.sample.samplers import SAMPLERS

PAGE = Path(__file__).parents[2] / "docs" / "grids.md"
NAMED = ("native 28", "trailing 28", "karras 28", "exponential 28")


@pytest.fixture(scope="module")
def numbers():
    return grid_numbers()


def test_the_page_holds_the_tables_that_are_computed(numbers):
    page = PAGE.read_text(encoding="utf-8")
    missing = [name for name, table in grid_tables(numbers).items() if table not in page]
    assert not missing, f"write the tables of `refimpl figures` (grids.md) into {PAGE.name}: {missing}"


def test_every_grid_and_sampler_is_in_the_numbers(numbers):
    assert list(numbers["R"]) == list(CANVASES)
    for kept in numbers["R"].values():
        assert {"native 28", "canvas 28", "laplace 28", "community_trainer 10"} <= set(kept)
        assert all(list(row) == ["first_level", "exact_flow", *SAMPLERS] for row in kept.values())
    assert list(numbers["covariance"]) == [*numbers["R"][SHOWN_CANVAS], WITHOUT_LAST]
    assert list(numbers["order"]) == list(SAMPLERS)


def test_the_figures_command_writes_the_tables_and_their_numbers(numbers, tmp_path, monkeypatch):
    monkeypatch.setattr("refimpl.paper.grid_page.grid_numbers", lambda: numbers)
    page, table = grid_files(tmp_path)
    assert all(one in page.read_text(encoding="utf-8") for one in grid_tables(numbers).values())
    assert json.loads(table.read_text(encoding="utf-8")) == numbers


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_canvas_grid_costs_at_most_a_fifth_more_error_elsewhere(sampler, numbers):
    """The largest error of the covariance over the posteriors, against the best of the named grids."""
    errors = {
        grid: abs(worst_covariance(by_sampler[sampler]) - 1)
        for grid, by_sampler in numbers["covariance"].items()
    }
    assert errors["canvas 28"] <= 1.2 * min(errors[name] for name in NAMED)


def test_euler_needs_more_steps(numbers):
    kept = numbers["R"][SHOWN_CANVAS]
    assert kept["canvas 28"]["euler"] < PROMISED < kept["canvas 28"]["exact_flow"]
    assert all(28 < steps < 100 for steps in numbers["euler_steps"].values())
