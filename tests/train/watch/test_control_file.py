"""control.json: each action asked for is taken once, and what is no such file asks for nothing."""

import os
import time
from pathlib import Path

import pytest

from refimpl.errors import InputError
from refimpl.train.watch import control_file
from refimpl.train.watch.control_file import ACTIONS, CONTROL, ask, asked_actions, taken
from tests.tolerances import CONTROL_READ_SECONDS


def test_what_is_asked_for_is_taken_once(tmp_path: Path) -> None:
    path = tmp_path / CONTROL
    assert taken(path) == frozenset()
    assert ask(path, "stop") == ["stop"]
    assert ask(path, "sample") == ["sample", "stop"]
    assert ask(path, "sample") == ["sample", "stop"]
    assert asked_actions(path) == ["sample", "stop"]
    assert taken(path) == {"sample", "stop"}
    assert not path.exists()
    assert taken(path) == frozenset()


def test_what_is_asked_for_while_the_run_reads_is_for_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / CONTROL, control_file.asked_actions

    def asked_meanwhile(file: Path) -> list[str]:
        monkeypatch.undo()
        found = read(file)
        assert ask(path, "stop")[-1] == "stop"
        return found

    ask(path, "sample")
    monkeypatch.setattr(control_file, "asked_actions", asked_meanwhile)
    assert taken(path) == {"sample"}
    assert [file.name for file in tmp_path.iterdir()] == [CONTROL]
    assert taken(path) == {"stop"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"actions": 3}', b'{"actions": null}', b'{"action": "stop"}', b"[" * 4000,
     b'{"actions": ["rm -rf", "Stop", ["stop"]]}', b" " * 5000 + b'{"actions": ["stop"]}'],
)  # fmt: skip
def test_any_other_file_asks_for_nothing_and_is_taken_too(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / CONTROL
    path.write_bytes(content)
    assert asked_actions(path) == []
    assert taken(path) == frozenset()
    assert not path.exists()


def test_a_link_or_a_folder_asks_for_nothing(tmp_path: Path) -> None:
    ask(tmp_path / "other", "stop")
    path = tmp_path / CONTROL
    path.symlink_to(tmp_path / "other")
    assert taken(path) == frozenset()
    assert not path.is_symlink()
    path.mkdir()
    assert taken(path) == frozenset()  # and stays, for it can't be deleted
    assert asked_actions(tmp_path / "other") == ["stop"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root deletes what it likes")
def test_what_cannot_be_taken_is_not_done_at_every_step(tmp_path: Path) -> None:
    path = tmp_path / CONTROL
    ask(path, "sample")
    tmp_path.chmod(0o555)
    try:
        assert taken(path) == frozenset()
    finally:
        tmp_path.chmod(0o755)


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"could not write .*control\.json: No such file"):
        ask(tmp_path / "gone" / CONTROL, ACTIONS[0])


def test_looking_for_it_costs_a_step_nothing(tmp_path: Path) -> None:
    """In the processor's time: below 0.5 % of the fastest step of the tiny preset, which takes some 100 ms."""
    path = tmp_path / CONTROL
    began = time.process_time()
    for _ in range(1000):
        taken(path)
    assert (time.process_time() - began) / 1000 < CONTROL_READ_SECONDS
