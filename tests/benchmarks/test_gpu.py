"""The driver of the GPU's stages: a stage's failure or time-out stops none after it, and nothing is left running."""

import json
import os
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_network_ops
from benchmarks.gpu import Stage
from benchmarks.timing import environment, write

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


def test_no_more_files_come_back_than_are_taken():
    written = {
        word
        for stage in gpu.stages(Path("out"), dry_run=False)
        for command in stage.commands
        for word in command
        if word.startswith("out/")
    }
    assert len({*written, "out/gpu.json", "out/logs.tar.gz"}) <= FILES_THAT_COME_BACK


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
