"""The lock of a run folder: one owner, and a dead one is none."""

import errno
import fcntl
import json
import os
import signal
import socket
from pathlib import Path

import pytest
import torch

from refimpl.commands.train import train_command
from refimpl.errors import InputError
from refimpl.run.world import World
from refimpl.train.setup.out_folder import run_folder
from refimpl.train.setup.run_lock import LOCK, run_lock
from tests.killing import holder
from tests.train import runs

ALONE = World(0, 1, torch.device("cpu"))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message), run_lock(folder, ALONE):
        pass


def end(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_a_second_job_is_refused_by_name(tmp_path: Path) -> None:
    process, _ = holder(run_lock(tmp_path, ALONE))
    since = json.loads((tmp_path / LOCK).read_text())["since"]
    expected = (
        f"{tmp_path} is being trained in by process {process} on {socket.gethostname()}, since {since}; wait for it "
        "or stop it, or choose another folder"
    )
    try:
        for _ in range(2):
            with pytest.raises(InputError) as error, run_lock(tmp_path, ALONE):
                pass
            assert str(error.value) == expected
    finally:
        end(process)


@pytest.mark.parametrize("and_child", [False, True])
def test_the_lock_of_a_killed_job_is_none(and_child: bool, tmp_path: Path) -> None:
    """Not even while a process that it had forked, as a loader's worker is, lives on."""
    process, child = holder(run_lock(tmp_path, ALONE), and_child)
    end(process)
    assert (tmp_path / LOCK).exists()
    try:
        with run_lock(tmp_path, ALONE):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
    assert not list(tmp_path.iterdir())


def test_a_lock_is_let_go_with_its_context(tmp_path: Path) -> None:
    for _ in range(2):
        with run_lock(tmp_path, ALONE):
            refused(tmp_path, "is being trained in by process")
    assert not list(tmp_path.iterdir())


def test_an_owner_who_has_not_yet_said_who_it_is_is_one(tmp_path: Path) -> None:
    for text in (b"", b"{", b"[]", b"{}"):
        (tmp_path / LOCK).write_bytes(text)
        with (tmp_path / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            refused(tmp_path, "is being trained in by another process; wait")


def test_a_file_removed_by_the_owner_before_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name may be gone, or name another file, by the time the lock is there."""
    original, files = fcntl.flock, []

    def removing(descriptor: int, operation: int) -> None:
        original(descriptor, operation)
        files.append(descriptor)
        if len(files) < 3:
            (tmp_path / LOCK).unlink()
        if len(files) == 2:
            (tmp_path / LOCK).write_text("of another process")

    monkeypatch.setattr(fcntl, "flock", removing)
    with run_lock(tmp_path, ALONE):
        monkeypatch.undo()
        assert len(files) == 3
        refused(tmp_path, f"process {os.getpid()} on")


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusing(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refusing)
    with run_lock(tmp_path, ALONE):
        pass
    assert "is on a file system without locks (No locks available): nothing keeps" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "absent", r"\.lock can't be made: No such file or directory; choose a folder")


def test_the_command_refuses_a_folder_in_use(root: Path, tmp_path: Path) -> None:
    toml = runs.write_toml(root, tmp_path / "a.toml", tmp_path / "run")
    (tmp_path / "run").mkdir()
    with (
        run_lock(tmp_path / "run", ALONE),
        pytest.raises(InputError, match="run is being trained in by process"),
    ):
        train_command([toml])
    assert not list((tmp_path / "run").iterdir())


def test_what_a_killed_job_left_of_a_lock_is_no_run(root: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).touch()
    assert run_folder(runs.config(root, tmp_path / "run"), "test", ALONE) == tmp_path / "run"


def test_what_killed_writers_left_goes_when_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / ".components.writing-17").mkdir()
    (tmp_path / ".components.writing-17" / "unet.safetensors").touch()
    (tmp_path / ".config.json.writing-17").touch()
    (tmp_path / ".mine").touch()
    with run_lock(tmp_path, ALONE):
        assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, ".mine"]
