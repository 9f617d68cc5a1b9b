"""The step benchmark goes on where it ended, and its attention table says what did not run."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import gpu_step, gpu_tables, step_tables
from benchmarks.attention_table import attention_rows
from benchmarks.step_inputs import Case, Marks
from benchmarks.step_rows import RowLine, case_in, case_of, rows_before
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


def test_what_could_not_end_in_time_is_not_begun(
    steps: Callable[..., Called], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compiling takes longer than the rest of a case; what needs none goes on meanwhile."""
    first, *others = gpu_step.cases(True)
    compiled = replace(first, compile="blocks")
    monkeypatch.setattr(gpu_step, "cases", lambda small: [compiled, first, *others])
    code, found, _ = steps("--seconds", str(gpu_step.COMPILING - 1))
    assert code == 1
    assert [row["compile"] for row in found["rows"]] == ["none", "none"]
    assert f"{compiled.name}: not begun" in capsys.readouterr().out
    assert steps("--seconds", str(gpu_step.COMPILING + 60))[0] == 0


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


@pytest.fixture
def captured_first(
    steps: Callable[..., Called], monkeypatch: pytest.MonkeyPatch
) -> Callable[[BaseException], list]:
    """Has two captured cases come first, which end in an error; returns what the process is then replaced by."""
    captured = replace(gpu_step.cases(True)[0], captured=True)
    cases = [captured, replace(captured, precision="tf32"), *gpu_step.cases(True)]
    monkeypatch.setattr(gpu_step, "cases", lambda small: cases)
    written, replaced = gpu_step.MAKERS["ours"], []
    monkeypatch.setattr(gpu_step.os, "execv", lambda program, arguments: replaced.append(arguments))

    def end_in(error: BaseException) -> list:
        def step(case: Case, marks: Marks) -> Callable[[], None]:
            if case.captured:
                raise error
            return written(case, marks)

        monkeypatch.setitem(gpu_step.MAKERS, "ours", step)
        return replaced

    return end_in


def test_after_a_capture_that_failed_a_new_process_goes_on(
    steps: Callable[..., Called], captured_first: Callable[[BaseException], list]
) -> None:
    replaced = captured_first(RuntimeError("not permitted when stream is capturing"))
    code, found, _ = steps("--seconds", "100")
    assert code == 1
    assert [row["captured"] for row in found["rows"]] == [True]
    assert found["rows"][0]["result"].startswith("failed: RuntimeError: not permitted")
    (arguments,) = replaced
    assert arguments[1:4] == ["-u", "-m", "benchmarks.gpu_step"]
    assert arguments[4:-1] == [*sys.argv[1:], "--seconds"]
    assert 0 < float(arguments[-1]) < 100
    code, found, taken = steps()
    assert (code, taken) == (1, ["ours", "diffusers"])
    rows = [(row["precision"], row["result"][:6]) for row in found["rows"]]
    assert rows == [("bf16", "failed"), ("bf16", "timed"), ("bf16", "timed"), ("tf32", "failed")]
    assert len(replaced) == 1, "what failed is no reason to go on"
    assert steps("--only", "captured")[0] == 1
    assert len(replaced) == 1


def test_what_ended_the_process_is_tried_again_last(
    steps: Callable[..., Called], captured_first: Callable[[BaseException], list]
) -> None:
    captured_first(KeyboardInterrupt())
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            steps()
    found = rows_before(Path(sys.argv[2]), "cpu")[0]
    ended = "failed: the process ended in it"
    assert [row["result"] for row in found] == ["timed", "timed", ended, ended]


@pytest.mark.parametrize("small", [False, True])
def test_captured_cases_follow_the_three_of_most_worth(small: bool) -> None:
    cases = gpu_step.cases(small)
    assert [case.captured for case in cases[:7]] == [False] * 3 + [True] * 3 + [False]
    captured = [case for case in cases if case.captured]
    assert {replace(case, captured=False) for case in captured} <= {*cases}, "whose kernels are counted"
    assert not any(case.is_profiled for case in captured)
    assert len({case.name for case in captured} - {case.name for case in cases if not case.captured}) == 5


ROW = {
    **asdict(Case("ours", "bf16", 1024, 1024, 6, checkpointing="cheap")),
    "accumulate": 2,
    "parts_ms": {"forward": 1.0},
    "step_ms": 10.0,
    "quartile_low_ms": 9.0,
    "quartile_high_ms": 11.0,
    "first_step_s": 2.0,
    "images_per_second": 2.0,
    "peak_bytes": 2**30,
    "result": "timed",
    "memory_gib": 78.0,
}
OLD = {name: value for name, value in ROW.items() if name != "captured"}


def test_a_row_without_the_field_was_not_captured() -> None:
    assert case_in(OLD) == case_in(ROW)
    assert not case_in(OLD).captured
    assert case_of(OLD) == case_of(ROW) != case_of({**ROW, "captured": True})
    runs = [
        {"step_gpu": {"environment": {"commit": f"commit{number}"}, "rows": [row]}}
        for number, row in enumerate((OLD, {**ROW, "step_ms": 5.0}, {**ROW, "captured": True}))
    ]
    newest = gpu_tables._newest([run["step_gpu"] for run in runs])["rows"]
    assert [(row["step_ms"], row["captured"]) for row in newest] == [(5.0, False), (10.0, True)]
    assert [row["commit"] for row in newest] == ["commit1", "commit2"]


def test_tables_say_captured_and_count_it_towards_no_goal() -> None:
    fast = {**ROW, "captured": True, "images_per_second": 99.0}
    assert "cheap captured 1024x1024" in str(RowLine(fast))
    assert "captured" not in str(RowLine(OLD))
    lines = step_tables.step_section({"gpu": "none", "rows": [OLD, fast], "attention": []})
    assert [line.count("checkpointing, captured |") for line in lines if "99.00" in line] == [1]
    goal = next(line for line in lines if line.startswith("| bf16 at 1024²: ≥ 22.0"))
    assert goal.endswith("| 2.00 | missed |")


def test_each_choice_of_attention_is_timed_or_says_why_not() -> None:
    rows = {row["choice"]: row for row in attention_rows("cpu", small=True)}
    assert "cannot run on cpu" in rows["tf32 flex"]["refused"]
    assert "cannot run on cpu" in rows["bf16 cudnn in tf32"]["refused"]
    assert rows["fp32 math"]["relative_error"] <= FLOAT32_ROUNDING
    assert FLOAT32_ROUNDING < rows["bf16 flash in tf32"]["relative_error"] <= 2 * BFLOAT16_ROUNDING
