"""A folder's lock: one holder, none that is dead, and none where the file system has none."""

import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from refimpl.commands.data import index
from refimpl.commands.data.cache import alone_in
from refimpl.errors import InputError
from refimpl.storage.ranks.lock import HeldElsewhere, locked, unlocked
from tests.killing import holder
from tests.train import runs

Alone = Callable[[Path], contextlib.AbstractContextManager[None]]
ALONE: dict[str, Alone] = {
    "indexing": lambda folder: index._alone_in(folder, folder / "index"),
    "caching": lambda folder: alone_in(folder, runs.ALONE),
}


def failing(number: int) -> Callable[[int, int], None]:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    return flock


def test_the_second_is_told_what_the_first_has_written(tmp_path: Path) -> None:
    first = locked(tmp_path / "lock", "writing too")
    os.pwrite(first, b"the first", 0)
    with pytest.raises(HeldElsewhere) as error:
        locked(tmp_path / "lock", "writing too")
    assert error.value.owner == b"the first"
    unlocked(first)
    unlocked(locked(tmp_path / "lock", "writing too"))


@pytest.mark.parametrize("name", ALONE)
def test_a_killed_holder_locks_nothing_though_its_child_lives_on(name: str, tmp_path: Path) -> None:
    """As a loader's process does, which its parent forked and did not live to end."""
    process, child = holder(ALONE[name](tmp_path), and_child=True)
    try:
        with pytest.raises(InputError, match=r"another (process|run) is"), ALONE[name](tmp_path):
            pass
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        with ALONE[name](tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("name", ALONE)
def test_the_lock_is_let_go_when_the_work_ends_or_fails(name: str, tmp_path: Path) -> None:
    """In the same process, which would hold a lock that it forgets for as long as it lives."""
    before = os.listdir("/proc/self/fd")
    with ALONE[name](tmp_path):
        pass
    with pytest.raises(ZeroDivisionError), ALONE[name](tmp_path):
        raise ZeroDivisionError
    with ALONE[name](tmp_path):
        assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("name", ALONE)
def test_a_file_system_without_locks_is_said_and_worked_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    with ALONE[name](tmp_path):
        pass
    what = {"indexing": f"indexing into {tmp_path / 'index'} too", "caching": "writing to it too"}[name]
    assert capsys.readouterr().out == (
        f"{tmp_path} is on a file system without locks (No locks available): nothing keeps a second process from "
        f"{what}\n"
    )


@pytest.mark.parametrize("name", ALONE)
def test_a_lock_that_fails_is_an_error_and_leaves_nothing_open(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.EIO))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(InputError, match="Input/output error"), ALONE[name](tmp_path):
        pass
    assert len(os.listdir("/proc/self/fd")) == len(before)
