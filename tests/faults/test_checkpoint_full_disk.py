"""A disk that fills up while a checkpoint is written: the message has the figures, and what was there stays."""

import os
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from refimpl.errors import InputError
from tests.faults.saves import Training, saved_run, step_folder, whole_steps
from tests.folders import largest_file

Tally = Callable[..., None]
Room = namedtuple("Room", "f_bavail f_frsize")


def fill_disk(run: Path, thresholds: int, tally: Tally) -> None:
    """Saves under limits on a file's size from 0 to one byte less than the largest file has."""
    training = saved_run(run)
    largest = max(path.stat().st_size for path in step_folder(run, 2).iterdir())
    lost = 0
    for number in range(thresholds):
        limit = number * (largest - 1) // max(thresholds - 1, 1)
        with largest_file(limit), pytest.raises(InputError) as error:
            training.save(run, 3)
        message = str(error.value)
        assert message.startswith(
            f"could not write {step_folder(run, 3)}: File too large; free space or choose"
        )
        assert " bytes to be written, " in message
        assert message.endswith(" bytes free)")
        lost += whole_steps(run) != [1, 2]
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
            "step-00000001",
            "step-00000002",
        ]
    tally(tried=thresholds, lost=lost)
    assert lost == 0
    with largest_file(largest):
        training.save(run, 3)
    assert whole_steps(run) == [2, 3]


def test_two_limits(tmp_path: Path, tally: Tally) -> None:
    fill_disk(tmp_path / "run", 2, tally)


@pytest.mark.faults
def test_twenty_limits(tmp_path: Path, tally: Tally) -> None:
    fill_disk(tmp_path / "run", 20, tally)


def test_a_save_without_room_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed save left is removed first: it may be all that is in the way."""
    run = tmp_path / "run"
    training = saved_run(run)
    left = run / "checkpoints" / ".step-00000003.writing-1"
    left.mkdir()
    monkeypatch.setattr(os, "statvfs", lambda path: Room(0 if left.exists() else 1000, 4096))
    training.save(run, 3)
    monkeypatch.setattr(os, "statvfs", lambda path: Room(0, 4096))
    with pytest.raises(
        InputError, match=r"no room on its file system \(\d+ bytes to be written, 0 bytes free\)"
    ):
        training.save(run, 4)
    monkeypatch.undo()
    assert whole_steps(run) == [2, 3]
    assert Training().load(run) == 3
