"""Stamps and hashes of images, both plain files and inside archives."""

import hashlib
import os
import tarfile
from pathlib import Path

import pytest

from refimpl.data.images.archives import TarMember
from refimpl.data.images.decode import BadImage
from refimpl.data.index.content import content, stamp

DATA = bytes(range(256)) * 5000  # more than one block


def halves(data: bytes) -> tuple[int, int]:
    digest = hashlib.sha256(data).digest()
    return int.from_bytes(digest[:8], "little", signed=True), int.from_bytes(
        digest[8:16], "little", signed=True
    )


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for data in (b"", DATA):
        path.write_bytes(data)
        os.utime(path, ns=(7, 1_700_000_000_000_000_123))
        assert content(path) == content(str(path)) == halves(data)
        assert stamp(path) == (len(data), 1_700_000_000_000_000_123)


def test_a_member_of_an_archive(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(DATA)
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    with tarfile.open(archive) as tar:
        offset = tar.getmember("a.png").offset_data
    member = TarMember(str(archive), "a.png", offset, len(DATA), archive.stat().st_size)
    assert content(member) == content(tmp_path / "a.png")
    assert stamp(member) == (archive.stat().st_size, archive.stat().st_mtime_ns)
    with archive.open("ab") as file:
        file.write(b"more")
    with pytest.raises(BadImage, match="when it was indexed; index it again"):
        content(member)


def test_what_is_not_there(tmp_path: Path) -> None:
    gone = TarMember(str(tmp_path / "gone.tar"), "a.png", 0, 1, 1)
    for source in (tmp_path / "gone.png", gone):
        for look in (stamp, content):
            with pytest.raises(BadImage, match=r"can't be read \(No such file or directory\)"):
                look(source)
