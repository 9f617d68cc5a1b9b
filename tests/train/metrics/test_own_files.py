"""What a run's pages may open: regular files of the run's own, and no link, pipe or folder."""

import os
from pathlib import Path

import pytest

from refimpl.train.metrics.own_files import LINK, SHOWN, linked, opened_regular


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    with opened_regular(tmp_path / "a") as file:
        assert file.read() == b"content"


@pytest.mark.parametrize("target", ["a", "nowhere", "folder", "link"])
def test_a_link_is_refused_in_words(tmp_path: Path, target: str) -> None:
    """Wherever it leads, to itself or to a file beside it too."""
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(OSError, match=LINK):
        opened_regular(tmp_path / "link")


def test_what_is_no_file_is_neither_read_nor_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(OSError, match="it is not a regular file"):
            opened_regular(path)
    with pytest.raises(FileNotFoundError):
        opened_regular(tmp_path / "nothing")


def test_links_are_named(tmp_path: Path) -> None:
    assert linked(tmp_path) == ""
    (tmp_path / "config.json").write_text("{}")
    for name in SHOWN[1:3]:
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    assert linked(tmp_path) == f"metrics.jsonl, faults.jsonl: {LINK}"
    (tmp_path / "again").symlink_to(tmp_path)
    assert linked(tmp_path / "again") == linked(tmp_path)
