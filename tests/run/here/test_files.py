"""A wrong file or folder is told by names and first bytes, and a right one is let through."""

from pathlib import Path

import pytest

from refimpl.cache.latents import KIND
from refimpl.data.images.decode import FORMAT_OF
from refimpl.data.index.layouts.metadata import JSONL
from refimpl.run.here import files
from refimpl.run.here.files import cannot_make, holds_images, is_cache, not_json, wrong_kind
from refimpl.storage.store import MANIFEST


def test_names_are_those_of_their_owners() -> None:
    assert set(files.IMAGE_SUFFIXES) == set(FORMAT_OF)
    assert (files.METADATA, files.CACHE) == (JSONL, (KIND, MANIFEST))


@pytest.mark.parametrize("name", ["a.PNG", "deep/er/b.avif", "metadata.jsonl", "train/metadata.jsonl"])
def test_a_folder_with_images(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert holds_images(str(tmp_path))


@pytest.mark.parametrize("name", ["a.txt", ".a.png", ".hidden/a.png", "a.tar", "deep/er/metadata.jsonl"])
def test_a_folder_without(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert not holds_images(str(tmp_path))


def test_a_folder_of_too_many_files_is_not_searched_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_NAMES", 2)
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).touch()
    assert holds_images(str(tmp_path))


def test_weights_are_told_from_other_files(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    header = (640).to_bytes(8, "little") + b"{" + b" " * 639  # its length begins as a pickle does
    for begin, said in (
        (header, ""),
        (b"\x80\x02}q\x00", "is a pickle, not a .safetensors file; it can run code"),
        (
            b"version https://git-lfs.github.com/spec/v1",
            "is a Git LFS pointer, not a .safetensors file; fetch",
        ),
        (b"", "is an empty file, not a .safetensors file"),
    ):
        path.write_bytes(begin)
        assert wrong_kind(str(path)).startswith(said)
        assert bool(wrong_kind(str(path))) == bool(said)
    assert wrong_kind(str(tmp_path)) == wrong_kind("nowhere") == ""


def test_json_is_told_from_other_files(tmp_path: Path) -> None:
    path = tmp_path / "shift.json"
    path.write_text('{"mean": [0]}')
    assert not_json(str(path)) == ""
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert not_json(str(path)) == "is a PNG image, not JSON"


def test_a_cache_is_told_by_its_manifest(tmp_path: Path) -> None:
    assert not is_cache(str(tmp_path))
    (tmp_path / KIND).mkdir()
    (tmp_path / KIND / MANIFEST).touch()
    assert is_cache(str(tmp_path))


def test_a_folder_that_could_be_made_is_not_made(tmp_path: Path) -> None:
    assert cannot_make(tmp_path / "a" / "b") == ""
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert cannot_make(tmp_path / "file" / "b" / "c") == "Not a directory"
    assert cannot_make(Path("/proc/run/x")) == "No such file or directory"
