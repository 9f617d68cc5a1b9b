"""The driver of the GPU's stages: a stage's failure or time-out stops none after it, and nothing is left running."""

import json
import os
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_checks, gpu_network_ops
from benchmarks.gpu import Stage
from benchmarks.timing import environment, write
from refimpl.ops import KernelNotBuilt

FILES_THAT_COME_BACK = 8  # of one run on the machine that is lent


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def planned(monkeypatch: pytest.MonkeyPatch, *stages: Stage) -> None:
    monkeypatch.setattr(gpu, "stages", lambda out, dry_run: list(stages))


def go(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(out), *arguments])
    try:
        gpu.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def results(out: Path) -> dict:
    return {
        name: stage["result"] for name, stage in json.loads((out / "gpu.json").read_text())["stages"].items()
    }


def killed(*_):
    raise KeyboardInterrupt


def test_a_failed_stage_stops_none_after_it(tmp_path, monkeypatch, capsys):
    broken = Stage("broken", [python("print('why'); raise SystemExit(3)")], 30)
    planned(monkeypatch, broken, Stage("absent", [["no-such-program"]], 30), Stage("good", [python("")], 30))
    assert go(monkeypatch, tmp_path) == 1
    found = results(tmp_path)
    assert found["broken"] == "failed with exit code 3 (broken.log)"
    assert found["absent"] == "not started: no-such-program is not installed"
    assert found["good"] == "passed"
    assert "broken: why" in capsys.readouterr().out
    with tarfile.open(tmp_path / "logs.tar.gz") as archive:
        assert {"logs/broken.log", "logs/good.log"} <= set(archive.getnames())


def test_a_second_call_goes_on_with_what_has_not_passed(tmp_path, monkeypatch):
    count = python(f"open({str(tmp_path / 'count')!r}, 'a').write('x')")
    planned(monkeypatch, Stage("once", [count], 30), Stage("later", [python("raise SystemExit(1)")], 30))
    assert go(monkeypatch, tmp_path) == 1
    planned(monkeypatch, Stage("once", [count], 30), Stage("later", [python("")], 30))
    assert go(monkeypatch, tmp_path) == 0
    assert (tmp_path / "count").read_text() == "x"
    assert results(tmp_path) == {"once": "passed", "later": "passed"}
    assert go(monkeypatch, tmp_path, "--stages", "once") == 0, "a stage that is named runs again"
    assert (tmp_path / "count").read_text() == "xx"


def test_a_second_call_keeps_the_logs_of_the_first(tmp_path, monkeypatch):
    def logged() -> dict[str, str]:
        with tarfile.open(tmp_path / "logs.tar.gz") as archive:
            files = [member for member in archive.getmembers() if member.isfile()]
            return {file.name: archive.extractfile(file).read().decode().strip() for file in files}

    planned(monkeypatch, Stage("once", [python("print(1)")], 30), Stage("again", [python("exit(1)")], 30))
    assert go(monkeypatch, tmp_path) == 1
    planned(monkeypatch, Stage("once", [python("")], 30), Stage("again", [python("print(2)")], 30))
    assert go(monkeypatch, tmp_path) == 0
    assert logged() == {"logs/once.log": "1", "logs/again.log": "2"}
    assert go(monkeypatch, tmp_path, "--dry-run", "--stages", "again") == 0
    assert set(logged()) == {"logs/again.log"}, "those of a GPU are none of a dry run"


def test_a_second_call_begins_with_what_was_not_begun(tmp_path, monkeypatch):
    def note(name, code=0):
        path = str(tmp_path / "order")
        return Stage(name, [python(f"open({path!r}, 'a').write('{name} '); raise SystemExit({code})")], 30)

    late = Stage("late", [["no-such-program"]], 30)
    planned(monkeypatch, note("build", 1), note("step", 1), late)
    assert go(monkeypatch, tmp_path) == 1
    planned(monkeypatch, note("build"), note("step"), note("late"), note("new"))
    assert go(monkeypatch, tmp_path) == 0
    assert (tmp_path / "order").read_text().split() == ["build", "step", "build", "late", "new", "step"]


def test_a_time_out_ends_the_whole_process_group(tmp_path, monkeypatch):
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    monkeypatch.setattr(gpu, "SHORTEST", 0)
    planned(monkeypatch, Stage("long", [python(parent)], 4), Stage("good", [python("")], 30))
    assert go(monkeypatch, tmp_path) == 1
    assert results(tmp_path) == {"long": "stopped: its time was up", "good": "passed"}
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text():
            break
        time.sleep(0.1)
    else:
        os.kill(pid, 9)
        pytest.fail("the grandchild lived on")


def test_nothing_is_started_when_the_time_is_up(tmp_path, monkeypatch):
    planned(monkeypatch, Stage("late", [python("")], 30))
    assert go(monkeypatch, tmp_path, "--seconds", "1") == 1
    assert results(tmp_path) == {"late": "not started: the time was up"}


def test_an_unknown_stage_is_named(tmp_path, monkeypatch, capsys):
    planned(monkeypatch, Stage("good", [python("")], 30))
    assert go(monkeypatch, tmp_path, "--stages", "god") == 2
    assert "unknown stages god; there are good" in capsys.readouterr().err


def test_the_limits_of_both_calls_fit_the_time_lent():
    limits = {stage.name: stage.seconds for stage in gpu.stages(Path("out"), dry_run=False)}
    first = [limits.pop(name) for name in gpu.FIRST]
    assert sum(first) <= gpu.SECONDS
    assert sum(limits.values()) <= gpu.LENT - gpu.START - gpu.SECONDS


@pytest.mark.parametrize("dry_run", [False, True])
def test_the_captured_step_is_among_the_tests(dry_run):
    tests = next(stage for stage in gpu.stages(Path("out"), dry_run) if stage.name == "tests")
    files = [word for command in tests.commands for word in command if word.endswith(".py")]
    assert "tests/benchmarks/test_step_captured.py" in files
    assert all((gpu.ROOT / file).is_file() for file in files)


def test_no_more_files_come_back_than_are_taken():
    written = {
        word
        for stage in gpu.stages(Path("out"), dry_run=False)
        for command in stage.commands
        for word in command
        if word.startswith("out/")
    }
    assert len({*written, "out/gpu.json", "out/logs.tar.gz"}) <= FILES_THAT_COME_BACK


def test_a_dry_run_takes_the_same_names(tmp_path, monkeypatch, capsys):
    card = Stage("card", [python("raise SystemExit(1)")], 30, needs_gpu=True)
    planned(monkeypatch, card, Stage("good", [python("")], 30))
    assert go(monkeypatch, tmp_path, "--dry-run", "--stages", "card,good") == 0
    assert results(tmp_path) == {"good": "passed"}
    assert "left out of a dry run, as they need a GPU: card\n" in capsys.readouterr().out
    assert [stage.name for stage in gpu.stages(tmp_path, True)] == [
        s.name for s in gpu.stages(tmp_path, False)
    ]


@pytest.mark.parametrize(("later", "until"), [(30, 160), (300, 60)])
def test_a_stage_of_cases_has_what_the_others_leave(tmp_path, monkeypatch, later, until):
    """Its limit, or more: the 200 s of the call but for the limits of the stages after it."""
    note = python(f"import sys; open({str(tmp_path / 'told')!r}, 'w').write(' '.join(sys.argv[1:]))")
    before, after = Stage("before", [python("")], 30), Stage("after", [python("")], later)
    planned(monkeypatch, before, Stage("cases", [note], 70, grows=True, last_case=10), after)
    assert go(monkeypatch, tmp_path, "--seconds", "200") == 0
    name, seconds = (tmp_path / "told").read_text().split()
    assert name == "--seconds"
    assert until - 20 < float(seconds) <= until


def test_a_dry_run_builds_no_extension_anew(tmp_path):
    """The one that these tests import has all that a CPU needs."""
    build = gpu.stages(tmp_path, dry_run=True)[0]
    assert gpu.run(build, tmp_path, 60)["last"] == ["build: extension passed on cpu"]


def test_an_extension_that_is_absent_is_one_line(monkeypatch):
    def load_ops(backend):
        raise KernelNotBuilt("the backend 'kernel' is not built")

    gpu_checks.kernel.cache_clear()
    monkeypatch.setattr(gpu_checks, "load_ops", load_ops)
    with pytest.raises(SystemExit, match=r"^the backend 'kernel' is not built$"):
        gpu_checks.extension("cpu", small=True)


def test_racecheck_sees_a_few_layouts_in_any_case():
    stages = {stage.name: stage for stage in gpu.stages(Path("out"), dry_run=False)}
    few, all_of_them = stages["racecheck"].commands
    assert [*all_of_them, "4"] == few
    assert few[1:3] == ["--tool", "racecheck"]
    assert [stages[tool].commands[0][2] for tool in ("memcheck", "initcheck", "synccheck")] == [
        "memcheck", "initcheck", "synccheck"]  # fmt: skip


def test_a_walk_on_the_cpu_does_not_count_on_a_gpu(tmp_path, monkeypatch):
    count = python(f"open({str(tmp_path / 'count')!r}, 'a').write('x')")
    planned(monkeypatch, Stage("once", [count], 30))
    assert go(monkeypatch, tmp_path, "--dry-run") == 0
    assert go(monkeypatch, tmp_path) == 0
    assert (tmp_path / "count").read_text() == "xx"


def test_a_result_is_whole_whenever_the_machine_is_taken_away(tmp_path, monkeypatch):
    path = write("gpu", {"stages": {}}, tmp_path / "gpu.json")
    before = path.read_text()
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write("gpu", {"stages": {"late": {}}}, path)
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["gpu.json"]


@pytest.mark.parametrize("small", [False, True])
def test_no_operation_of_the_network_is_timed_twice(small):
    rows = [(row.operation, row.shape) for row in gpu_network_ops.rows("cpu", small, torch.bfloat16)]
    assert {operation for operation, _ in rows} == {"geglu", "group_norm_silu", "layer_norm"}
    assert len({*rows}) == len(rows)


def test_where_git_is_absent_a_result_names_the_commit_that_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("REFIMPL_COMMIT", raising=False)
    assert environment()["commit"] == "not a git checkout"
    monkeypatch.setenv("REFIMPL_COMMIT", "abc")
    assert environment()["commit"] == "abc"
