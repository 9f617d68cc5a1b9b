"""Manifests: every changed bit is found, in the manifest itself as in the files, and files are divided fairly."""

import errno
import json
import os
from pathlib import Path

import pytest

from refimpl.errors import InputError
from refimpl.storage import manifest
from refimpl.storage.manifest import Damaged, fingerprint, manifest_text, read_manifest, verify
from tests.storage.ranks.states import sign


def folder_of(path: Path) -> Path:
    path.mkdir()
    (path / "a.json").write_text("{}")
    (path / "b.bin").write_bytes(bytes(range(256)))
    sign(path)
    return path


def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    """Also those of the format, which would otherwise look like a newer version's."""
    folder = folder_of(tmp_path / "folder")
    (folder / "b.bin").unlink()
    sign(folder)
    path = folder / manifest.MANIFEST
    text = path.read_bytes()
    for bit in range(8 * len(text)):
        changed = bytearray(text)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(Damaged):
            verify(folder)
    path.write_bytes(text)
    verify(folder)


def test_manifests_of_earlier_versions_are_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder")
    table = json.loads((folder / manifest.MANIFEST).read_text())
    del table["manifest_sha256"]
    (folder / manifest.MANIFEST).write_text(json.dumps(table))
    verify(folder)
    assert read_manifest(folder).keys() == {"a.json", "b.bin"}


def test_a_newer_format_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "folder")
    monkeypatch.setattr(manifest, "FORMAT_VERSION", 2)
    text = manifest_text(read_manifest_files(folder))
    monkeypatch.undo()
    (folder / manifest.MANIFEST).write_text(text)
    with pytest.raises(InputError, match="has format 2; this version reads format 1") as error:
        verify(folder)
    assert not isinstance(error.value, Damaged)


def read_manifest_files(folder: Path) -> dict[str, dict[str, object]]:
    return json.loads((folder / manifest.MANIFEST).read_text())["files"]


def test_files_without_an_entry_of_their_own_kind_differ(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder")
    entry = fingerprint(folder / "a.json")
    for wrong in (None, [], {}, {"sha256": entry["sha256"]}, {**entry, "size": "2"}, {**entry, "size": 3}):
        (folder / manifest.MANIFEST).write_text(manifest_text({"a.json": wrong}))
        with pytest.raises(Damaged, match=r"a\.json differs from its manifest"):
            verify(folder)


def test_a_disk_that_cannot_be_read_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "folder")
    for number, kind in ((errno.EIO, Damaged), (errno.EACCES, PermissionError)):

        def failing(path: Path, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(manifest, "fingerprint", failing)
        with pytest.raises(kind, match=os.strerror(number)):
            verify(folder)


def test_only_the_files_asked_for_are_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder")
    (folder / "b.bin").write_bytes(b"damaged")
    verify(folder, ["a.json"])
    with pytest.raises(Damaged, match=r"b\.bin differs"):
        verify(folder)


def test_each_rank_gets_about_as_many_bytes() -> None:
    sizes = {"optimizer": 20, "ema": 10, "unet": 10, "state": 1, "config": 1}
    entries = {name: {"size": size} for name, size in sizes.items()}
    shares = manifest._shares(entries, 2)
    assert sorted(name for share in shares for name in share) == sorted(sizes)
    assert [sum(sizes[name] for name in share) for share in shares] == [21, 21]
    assert manifest._shares(entries, 8)[5:] == [[], [], []]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret"])
def test_a_manifest_lists_files_of_its_folder_alone(name: str, tmp_path: Path) -> None:
    """Or a checkpoint from elsewhere could have any file of this machine read, and say whether it is there."""
    (tmp_path / manifest.MANIFEST).write_text(manifest_text({name: {"sha256": "", "size": 0}}))
    with pytest.raises(Damaged, match="outside of"):
        verify(tmp_path)
