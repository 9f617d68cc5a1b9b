"""The step benchmark goes on where it ended, and its attention table says what did not run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import gpu_step
from benchmarks.attention_table import attention_rows
from benchmarks.step_inputs import Case, Marks
from tests.tolerances import BFLOAT16_ROUNDING, FLOAT32_ROUNDING

Called = tuple[int, dict, list[str]]  # exit code, file, cases that were timed


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Called]:
    """Calls gpu_step; returns its exit code, the rows of its file and the cases that it timed."""
    taken: list[str] = []
    cases = [Case(who, "bf16", 64, 64, 2, small=True) for who in ("ours", "diffusers")]
    monkeypatch.setattr(gpu_step, "cases", lambda small: cases)
    monkeypatch.setattr(gpu_step, "planned_bytes", lambda case: 7)
    monkeypatch.setattr(gpu_step, "attention_rows", lambda device, small: iter([{"choice": "math"}]))
    monkeypatch.setenv("REFIMPL_COMMIT", "one")

    def step(case: Case, marks: Marks) -> Callable[[], None]:
        taken.append(case.who)

        def run() -> None:
            marks.start()
            marks("forward")

        return run

    monkeypatch.setattr(gpu_step, "MAKERS", {"ours": step, "diffusers": step})

    def call(*arguments: str) -> Called:
        taken.clear()
        monkeypatch.setattr(
            sys,
            "argv",
            ["gpu_step", "--out", str(tmp_path / "step.json"), "--device", "cpu", "--small", *arguments],
        )
        try:
            gpu_step.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return code, json.loads((tmp_path / "step.json").read_text()), list(taken)

    return call


def test_a_second_call_times_the_cases_that_are_left(
    steps: Callable[..., Called], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, found, taken = steps("--only", "ours")
    assert (code, taken) == (0, ["ours"])
    assert found["rows"][0]["planned_bytes"] == 7
    code, found, taken = steps()
    assert (code, taken) == (0, ["diffusers"])
    assert [row["who"] for row in found["rows"]] == ["ours", "diffusers"]
    assert steps()[2] == []
    assert steps("--only", "ours")[2] == ["ours"], "what is named is timed again"
    monkeypatch.setenv("REFIMPL_COMMIT", "two")
    assert steps()[2] == ["ours", "diffusers"], "other code is timed anew"


def test_cases_that_the_time_left_out_are_not_taken_for_passed(steps: Callable[..., Called]) -> None:
    code, found, taken = steps("--seconds", "-1")
    assert (code, found["rows"], taken) == (1, [], [])


def test_the_attention_table_keeps_the_steps_and_they_keep_it(steps: Callable[..., Called]) -> None:
    steps()
    code, found, taken = steps("--attention")
    assert (code, len(found["rows"]), found["attention"], taken) == (0, 2, [{"choice": "math"}], [])
    assert steps()[1]["attention"] == [{"choice": "math"}]


def test_without_diffusers_ours_is_timed(
    steps: Callable[..., Called], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.step_diffusers", None)
    monkeypatch.setitem(gpu_step.MAKERS, "diffusers", gpu_step.their_step)
    code, found, taken = steps()
    assert (code, taken) == (1, ["ours"])
    assert found["rows"][1]["result"].startswith("failed: ModuleNotFoundError")


def test_each_choice_of_attention_is_timed_or_says_why_not() -> None:
    rows = {row["choice"]: row for row in attention_rows("cpu", small=True)}
    assert "cannot run on cpu" in rows["tf32 flex"]["refused"]
    assert "cannot run on cpu" in rows["bf16 cudnn in tf32"]["refused"]
    assert rows["fp32 math"]["relative_error"] <= FLOAT32_ROUNDING
    assert FLOAT32_ROUNDING < rows["bf16 flash in tf32"]["relative_error"] <= 2 * BFLOAT16_ROUNDING
