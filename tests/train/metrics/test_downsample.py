"""Few points of a long series: extremes, ends and order stay, and nothing is made up."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refimpl.train.metrics.downsample import FEWEST, downsampled

VALUES = st.lists(st.one_of(st.floats(-1e30, 1e30), st.just(math.nan)), max_size=300)


@given(values=VALUES, points=st.integers(FEWEST, 40), first=st.integers(-5, 300), length=st.integers(0, 300))
def test_extremes_and_ends_of_the_window_stay(
    values: list[float], points: int, first: int, length: int
) -> None:
    steps = list(range(len(values)))
    last = first + length
    shown = [(step, value) for step, value in zip(steps, values, strict=True)
             if first <= step <= last and not math.isnan(value)]  # fmt: skip
    found_steps, found = downsampled(steps, values, points, first, last)
    pairs = list(zip(found_steps.tolist(), found.tolist(), strict=True))
    assert len(pairs) <= max(points, 0)
    assert pairs == sorted(pairs, key=lambda pair: pair[0])
    assert set(pairs) <= set(shown)
    if shown:
        kept = [value for _, value in pairs]
        assert (min(kept), max(kept)) == (min(v for _, v in shown), max(v for _, v in shown))
        assert (pairs[0], pairs[-1]) == (shown[0], shown[-1])
    if len(shown) <= points:
        assert pairs == shown


def test_a_spike_in_a_hundred_thousand_rows_is_seen() -> None:
    values = np.full(100_000, 0.5)
    values[77_777], values[12_345] = 9.0, -9.0
    steps, shown = downsampled(range(0, 1_000_000, 10), values.tolist(), 800)
    assert len(shown) <= 800
    assert {(777_770, 9.0), (123_450, -9.0)} <= set(zip(steps.tolist(), shown.tolist(), strict=True))


def test_a_column_shorter_than_the_rows_ends_early() -> None:
    steps, values = downsampled([1, 2, 3], [0.5], 10)
    assert (steps.tolist(), values.tolist()) == ([1], [0.5])
