"""metrics.jsonl read while it grows: every row once, none half, and anew where the file was rewritten."""

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.train.metrics import read_rows
from refimpl.train.metrics.read_rows import JsonLines, MetricRows
from refimpl.train.metrics.rows import open_rows, write_row
from tests.tolerances import READ_ROWS_SECONDS


def line(step: int, **values: object) -> bytes:
    return json.dumps({"step": step, **values}).encode() + b"\n"


@given(cuts=st.lists(st.integers(0, 400), max_size=8), chunk=st.sampled_from([64, 100, 2**22]))
def test_every_whole_line_comes_once_however_it_was_written(
    cuts: list[int], chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("rows") / "metrics.jsonl"
    data = b"".join(line(step, loss=step / 2, note="é") for step in range(10))
    rows = MetricRows(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_rows, "CHUNK", chunk)
        for cut in [*sorted(cuts), len(data)]:
            path.write_bytes(b"") if not path.exists() else None
            with path.open("ab") as file:
                file.write(data[path.stat().st_size : cut])
            rows.update()
            whole = data[:cut].count(b"\n")
            assert rows.steps.tolist() == list(range(whole))
            assert [*rows.columns.get("loss", [])] == [step / 2 for step in range(whole)]
    assert (rows.broken, rows.cursor) == (0, "0-10")


def test_rows_have_only_some_of_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        line(0, heldout_loss=1.0) + line(1, loss=0.5, loss_by_timestep=[None, 0.25]) + line(2, loss=None, epoch=3)
        + line(3, bucket=[1, 2], flag=True, text="x", loss=math.inf, weight_mass={"share": 1})
    )  # fmt: skip
    rows = MetricRows(path)
    rows.update()
    shown = {
        name: [None if math.isnan(value) else value for value in column]
        for name, column in rows.columns.items()
    }
    assert shown == {
        "heldout_loss": [1.0],
        "loss": [None, 0.5, None, None],
        "loss_by_timestep/1": [None, 0.25],
        "epoch": [None, None, 3],
    }
    assert rows.since("0-3") == [
        {
            "step": 3,
            "bucket": [1, 2],
            "flag": True,
            "text": "x",
            "loss": math.inf,
            "weight_mass": {"share": 1},
        }
    ]


@pytest.mark.parametrize("rewritten", ["shorter", "another file", "same length", "longer"])
def test_a_file_that_was_rewritten_is_read_anew(rewritten: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1, loss=1) + line(2, loss=1))
    rows = MetricRows(path)
    rows.update()
    content = {
        "shorter": line(1, loss=2),
        "another file": line(1, loss=1) + line(2, loss=1) + line(3, loss=2),
        "same length": line(1, loss=2) + line(2, loss=2),
        "longer": line(1, loss=2) + line(2, loss=2) + line(3, loss=2),
    }[rewritten]
    if rewritten == "another file":
        (tmp_path / "new").write_bytes(content)
        os.replace(tmp_path / "new", path)
    else:
        path.write_bytes(content)
    assert rows.since("0-2") == []
    rows.update()
    assert rows.since("0-2") is None
    assert len(rows) == content.count(b"\n")
    assert rows.columns["loss"][-1] == 2
    assert rows.cursor == f"1-{len(rows)}"


def test_a_continued_run_rewrites_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with open_rows(path, 0) as file:
        for step in range(1, 5):
            write_row(file, step, {"loss": 1.0})
    rows = MetricRows(path)
    rows.update()
    with open_rows(path, 2) as file:
        rows.update()
        assert rows.steps.tolist() == [1, 2]
        write_row(file, 3, {"loss": 2.0})
        rows.update()
    assert rows.columns["loss"].tolist() == [1.0, 1.0, 2.0]


def test_broken_lines_are_counted_and_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_rows, "CHUNK", 200)
    path = tmp_path / "metrics.jsonl"
    broken = [b"", b"\xff", b"3", b"{", b'{"loss": 1}', b'{"step": true}', b'{"step": -1}', b'{"step": 1.0}']
    path.write_bytes(b"\n".join([*broken, b'{"step": 1}', b"[" * 150, b'{"step": 2}', b""]))
    rows = MetricRows(path)
    rows.update()
    assert (rows.steps.tolist(), rows.broken) == ([1, 2], len(broken) + 1)


def test_a_line_longer_than_a_chunk_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_rows, "CHUNK", 100)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + b'{"step": 2, "x": "' + b"a" * 500 + b'"}\n' + line(3))
    rows = MetricRows(path)
    rows.update()
    assert rows.steps.tolist() == [1, 3]
    assert rows.broken


def test_hostile_names_fill_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(line(step, **{f"n{step}": 1.0}) for step in range(1000)))
    rows = MetricRows(path)
    rows.update()
    assert len(rows.columns) == read_rows.MOST_NAMES


def test_no_file_is_an_error_until_there_is_one(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "faults.jsonl")
    with pytest.raises(FileNotFoundError):
        lines.read()
    lines.path.write_bytes(b'{"a": 1}\n')
    assert lines.read() == ([{"a": 1}], False)


def test_a_long_run_is_read_in_time(tmp_path: Path) -> None:
    """10,000 rows as a run writes them, in the processor's time; ten times as many take ten times as long."""
    import time

    path = tmp_path / "metrics.jsonl"
    losses = [0.1234567890123] * 10
    path.write_bytes(
        b"".join(line(step, loss=1 / (step + 1), loss_by_timestep=losses) for step in range(10_000))
    )
    rows = MetricRows(path)
    began = time.process_time()
    rows.update()
    assert time.process_time() - began < READ_ROWS_SECONDS
    assert len(rows) == 10_000
