"""Room is looked for before much is written."""

import os
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from refimpl.errors import InputError
from refimpl.storage import committed
from refimpl.storage.disk_space import check_room, free_bytes

Room = namedtuple("Room", "f_bavail f_frsize")


def test_room_is_that_of_the_file_system(tmp_path: Path) -> None:
    system = os.statvfs(tmp_path)
    assert free_bytes(tmp_path / "not" / "there" / "yet") == pytest.approx(
        system.f_bavail * system.f_frsize, rel=0.5
    )


def test_a_checkpoint_without_room_is_refused_before_a_byte_of_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"a": {"x": torch.zeros(1000)}, "b": {"y": torch.zeros(24, dtype=torch.float64)}}
    monkeypatch.setattr(os, "statvfs", lambda path: Room(1047, 4))
    with pytest.raises(InputError) as error:
        committed.write(tmp_path / "folder", tensors, {})
    assert str(error.value) == (
        f"could not write {tmp_path}/folder: no room on its file system (4,192 bytes to be written, 4,188 bytes "
        "free); what is there stays as it is; free space or choose another folder"
    )
    assert not list(tmp_path.iterdir())
    check_room(tmp_path, 4188)
    monkeypatch.setattr(os, "statvfs", lambda path: Room(1048, 4))
    committed.write(tmp_path / "folder", tensors, {})
