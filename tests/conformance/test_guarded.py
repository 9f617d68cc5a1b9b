"""Whatever an adapter does wrong is a finding with its text, and never a crash of the suite."""

import math
import re
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch

from refimpl.conformance.evaluate import Effort, run_check
from refimpl.conformance.registry import all_checks
from refimpl.conformance.returned import number
from tests.conformance.planted import REFERENCE, plant

CHECKS = all_checks()
QUICK = Effort(examples=5, call_seconds=0.3, check_seconds=3)
ONES = torch.ones(1000)


def swallow(zero_snr: bool) -> torch.Tensor:
    """Hangs, and catches what it is interrupted by, twice."""
    for _ in range(2):
        try:
            time.sleep(8)
        except BaseException:
            continue
    time.sleep(8)
    return ONES


def loop(zero_snr: bool) -> torch.Tensor:
    while True:
        pass


def failing(error: BaseException) -> Any:
    def method(*_: Any) -> None:
        raise error

    return method


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (failing(KeyError("abar")), r"schedule raised KeyError: 'abar', at method \(line \d+\)"),
        (failing(SystemExit(3)), "schedule raised SystemExit: 3"),
        (failing(RuntimeError("first\nsecond")), "schedule raised RuntimeError: first, at"),
        (lambda zero: ONES[:999], r"schedule returned shape \[999\], not \[1000\]"),
        (lambda zero: ONES[None], r"shape \[1, 1000\]"),
        (lambda zero: ONES * math.nan, "schedule returned nan in 1000 of 1000 places"),
        (lambda zero: ONES.to("meta"), "schedule returned a tensor on meta"),
        (lambda zero: ONES.to(torch.complex64), "schedule returned torch.complex64"),
        (lambda zero: None, "schedule returned NoneType, which is no tensor"),
        (lambda zero: "abar", "schedule returned str of 4, which is no tensor"),
        (lambda zero: [ONES, 1], "schedule returned list of 2, which is no tensor"),
        (lambda zero, extra: ONES, "schedule raised TypeError"),
        (loop, "schedule did not return within 0.3 s"),
        (lambda zero: time.sleep(60), "schedule did not return within 0.3 s"),
        (swallow, "schedule did not return within 0.3 s"),
    ],
)
def test_what_goes_wrong_is_said(schedule: Any, text: str) -> None:
    started = time.monotonic()
    outcome = run_check(CHECKS["schedule.published_table"], plant(schedule=schedule), QUICK)
    assert outcome.status == "deviates"
    assert outcome.deviation is None
    assert re.search(text, outcome.text), outcome.text
    assert time.monotonic() - started < 20


def test_after_one_hang_a_method_is_not_called_again() -> None:
    calls: list[int] = []

    def hang(*arguments: Any) -> None:
        calls.append(1)
        time.sleep(60)

    outcome = run_check(CHECKS["noised.mixes"], plant(noised=hang), QUICK)
    assert "did not return" in outcome.text
    assert len(calls) == 1


def test_a_slow_method_ends_its_check_in_time() -> None:
    started = time.monotonic()
    slow = plant(noised=lambda *arguments: time.sleep(0.2) or REFERENCE.noised(*arguments))
    outcome = run_check(CHECKS["noised.mixes"], slow, Effort(examples=1000, check_seconds=1))
    assert outcome.status == "deviates"
    assert "in all" in outcome.text or "did not return" in outcome.text
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("check", "method", "value", "text"),
    [
        ("scalings.at_infinity", "scalings", ONES[:1], "not the three"),
        ("buckets.distinct", "buckets", [(64,)], r"where \(width, height\) is due"),
        ("buckets.distinct", "buckets", 64, "int, not a list"),
        ("assign.pruning", "assign", [None], "1 buckets for 2 images"),
        ("epoch.shuffles", "epoch", [], "0 ranks of 1"),
        ("epoch.shuffles", "epoch", [[1]], "not"),
        ("crop.original_size", "crop", ONES, "not an image and its integers"),
        ("chunks.framed", "chunks", 3, "not the rows of two"),
        ("markers.both", "markers", ("v",), "not a name and a truth value"),
        ("size_ints.order", "size_ints", [1, 2], r"shape \[2\], not \[6\]"),
        ],
)  # fmt: skip
def test_results_of_another_form_are_said(check: str, method: str, value: Any, text: str) -> None:
    outcome = run_check(CHECKS[check], plant(**{method: lambda *_: value}), QUICK)
    assert outcome.status == "deviates"
    assert re.search(text, outcome.text), outcome.text


def test_results_of_integers_are_said() -> None:
    whole = plant(noised=lambda x0, *_: torch.zeros(x0.shape, dtype=torch.int8))
    outcome = run_check(CHECKS["noised.keeps_dtype"], whole, QUICK)
    assert outcome.status == "deviates"
    assert "torch.int8 for arguments" in outcome.text


def test_arrays_and_lists_are_tensors_too() -> None:
    abar = REFERENCE.schedule(False)
    for form in (abar.numpy(), abar.tolist(), abar.numpy().astype(np.float32)):
        outcome = run_check(CHECKS["schedule.published_table"], plant(schedule=lambda zero, form=form: form))
        assert outcome.status == "conforms"


def test_inputs_are_copies() -> None:
    def careless(x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        result = REFERENCE.noised(x0, eps, t)
        x0.zero_()
        eps.zero_()
        return result

    assert run_check(CHECKS["noised.mixes"], plant(noised=careless), QUICK).status == "conforms"


def test_what_is_missing_or_refused_is_not_offered() -> None:
    class Bare:
        def schedule(self, zero_snr: bool) -> torch.Tensor:
            raise NotImplementedError("no zero-SNR table")

    outcome = run_check(CHECKS["schedule.zero_snr_end"], Bare())
    assert (outcome.status, outcome.text) == ("not offered", "schedule: no zero-SNR table")
    outcome = run_check(CHECKS["target.inverts"], Bare())
    assert (outcome.status, outcome.text) == ("not offered", "target, noised")


def test_a_check_leaves_no_trace() -> None:
    state = torch.get_rng_state()
    modules = set(sys.modules)
    run_check(
        CHECKS["keyed.repeats"], plant(keyed=lambda s, ids, v, shape: torch.randn(len(ids), *shape)), QUICK
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert not {name for name in set(sys.modules) - modules if name.startswith("tests")}


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (0.0, "0"),
        (62.0, "62"),
        (math.inf, "inf"),
        (1.9021e-5, "1.9e-05"),
        (0.0137, "0.0137"),
        (97.35, "97.35"),
    ],
)
def test_numbers_are_short(value: float, printed: str) -> None:
    assert number(value) == printed
