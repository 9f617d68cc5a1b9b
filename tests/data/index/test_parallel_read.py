"""Indexing in pieces: in parallel, resuming after a kill, and rejecting what may not be trained on."""

import errno
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from refimpl.commands.data.index import build, looked_at
from refimpl.commands.main import dispatch
from refimpl.data.images.decode import Accepted
from refimpl.data.index import parallel_read as gathering
from refimpl.data.index.data_set import index_of, read_folder, read_index
from refimpl.data.index.layouts import folder as layout_folder
from refimpl.data.index.record import IndexOptions
from refimpl.data.tag_rules import TagRules
from refimpl.errors import InputError
from tests.data.files import encoded, png_chunk
from tests.data.index.test_data_set import add

OPTIONS = IndexOptions()
IMAGES_OF_TWO_PIECES = 2 * layout_folder.UNIT_IMAGES - 1


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve images in pieces of four."""
    monkeypatch.setattr(layout_folder, "UNIT_IMAGES", 4)
    for number in range(12):
        add(tmp_path / "images", f"{number % 3}/{number:02}.png", f"tag {number}, common", (number + 1, 5))
    return tmp_path / "images"


def build_here(source: Path, out: Path, options: IndexOptions = OPTIONS, **others: object) -> None:
    build((str(source),), out, options, 1, show=False, **others)


def test_an_index_is_the_folder_whatever_the_processes(images: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        build((str(images),), tmp_path / f"index{processes}", OPTIONS, processes, show=False)
    assert (tmp_path / "index1").read_bytes() == (tmp_path / "index2").read_bytes()
    index, folder = read_index(tmp_path / "index1"), read_folder(images)
    for name in ("ids", "paths", "captions", "tags"):
        assert list(getattr(index, name)) == getattr(folder, name)
    assert index.widths.tolist() == folder.widths.tolist()
    assert index.heights.tolist() == folder.heights.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "index1", "index2"]


def test_finished_pieces_are_not_redone(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = gathering.read_unit
    done: list[str] = []

    def failing_at_the_third(unit: object, options: IndexOptions) -> object:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(unit.payload)
        return read(unit, options)

    monkeypatch.setattr(gathering, "read_unit", failing_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        build_here(images, tmp_path / "index")
    assert not (tmp_path / "index").exists()
    again: list[str] = []
    monkeypatch.setattr(
        gathering, "read_unit", lambda unit, options: again.append(unit.payload) or read(unit, options)
    )
    build_here(images, tmp_path / "index")
    assert len(again) == 1
    assert not set(again) & set(done)
    assert len(read_index(tmp_path / "index")) == 12


@pytest.mark.parametrize("change", ["caption", "image", "options", "damage"])
def test_finished_pieces_are_redone_when_what_they_hold_changed(
    change: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refimpl.data.index.merge.merged", lambda parts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_here(images, tmp_path / "index")
    monkeypatch.undo()
    monkeypatch.setattr(layout_folder, "UNIT_IMAGES", 4)
    options = OPTIONS
    if change == "caption":
        (images / "0/00.txt").write_text("another")
    elif change == "image":
        add(images, "0/00.png", "tag 0, common", (77, 5))
    elif change == "options":
        options = IndexOptions(TagRules(("tag 0",)), sha256=True)
    else:
        for path in (tmp_path / ".index.parts").iterdir():
            path.write_bytes(path.read_bytes()[:-1])
    build_here(images, tmp_path / "index", options)
    index = read_index(tmp_path / "index")
    assert index.captions[0] == ("another" if change == "caption" else "tag 0, common")
    assert index.widths[0] == (77 if change == "image" else 1)
    assert ("sha256" in index.ids.table.arrays) == (change == "options")


def test_what_ends_before_a_first_piece_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.jpg").write_bytes(encoded(Image.new("RGB", (40, 24)), "JPEG"))
    for source, said in (
        ("empty", "no images"),
        ("photo.jpg", "is not a data set"),
        ("none", "no such folder"),
    ):
        with pytest.raises(InputError, match=said):
            build_here(tmp_path / source, tmp_path / "index")
        assert sorted(os.listdir(tmp_path)) == ["empty", "photo.jpg"]


def test_a_killed_run_leaves_pieces_and_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = add(tmp_path / "images", "first.png", "x")
    for number in range(IMAGES_OF_TWO_PIECES):
        os.link(first, first.with_name(f"{number:04}.png"))
    code = "from refimpl.commands.main import main; main()"
    words = [
        sys.executable,
        "-c",
        code,
        "data",
        "index",
        "images",
        "-o",
        "index",
        "--processes",
        "1",
        "--allow-missing",
    ]
    run = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL)
    parts = tmp_path / ".index.parts"
    while not (parts.is_dir() and any(path.suffix == ".part" for path in parts.iterdir())):
        assert run.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (tmp_path / "index").exists()
    kept = len(list(parts.glob("*.part")))
    read = gathering.read_unit
    again: list[object] = []
    monkeypatch.setattr(
        gathering, "read_unit", lambda unit, options: again.append(unit) or read(unit, options)
    )
    build_here(tmp_path / "images", tmp_path / "index", allow_missing=True)
    assert len(read_index(tmp_path / "index")) == 1 + IMAGES_OF_TWO_PIECES
    assert len(again) == 2 - kept


def test_ids_that_could_be_confused_across_sources_are_named_with_both_paths(tmp_path: Path) -> None:
    first, second = add(tmp_path / "a", "\u00e9.png"), add(tmp_path / "b", "E\u0301.png")
    with pytest.raises(InputError, match="two images have the id") as caught:
        build((str(tmp_path / "a"), str(tmp_path / "b")), tmp_path / "index", OPTIONS, 1, show=False)
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)
    with looked_at(str(tmp_path), OPTIONS, 1) as table:
        assert len(table) == 2  # their folders set them apart


def test_duplicates_are_counted_when_only_looked_at(tmp_path: Path) -> None:
    for name in ("x.png", "X.png", "x.jpg", "y.png"):
        add(tmp_path, name)
    with looked_at(str(tmp_path), OPTIONS, 1) as table:
        index = index_of(table)
    assert list(index.ids) == ["X", "y"]
    assert [bad.kind for bad in index.quarantined] == ["duplicate id"] * 2
    with pytest.raises(InputError, match="and 1 more such ids"):
        build_here(tmp_path, tmp_path / "index")


def test_two_runs_into_one_index_are_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = gathering.read_unit

    def and_another(unit: object, options: IndexOptions) -> object:
        with pytest.raises(InputError, match=r"another process is indexing into .*index; wait for it"):
            build_here(images, tmp_path / "index")
        return read(unit, options)

    monkeypatch.setattr(gathering, "read_unit", and_another)
    build_here(images, tmp_path / "index")
    assert len(read_index(tmp_path / "index")) == 12
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"could not write .*file.*; choose another place"):
        build_here(images, tmp_path / "file" / "index")


def test_a_full_disk_is_named_and_leaves_no_index(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "index").write_text("an older one")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        InputError, match=r"could not write .*: No space left on device; free space or choose"
    ):
        build_here(images, tmp_path / "index")
    assert (tmp_path / "index").read_text() == "an older one"
    assert not list(tmp_path.rglob("*.writing-*"))


def test_a_process_that_dies_is_named_and_waited_for_no_longer(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = tmp_path / "sitecustomize.py"  # run by each worker as it starts, before anything of this project
    killer.write_text("import os, sys\nif 'spawn_main' in ' '.join(sys.orig_argv): os.kill(os.getpid(), 9)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InputError, match=r"a process that read images died.* --processes 1"):
        build((str(images),), tmp_path / "index", OPTIONS, 2, show=False)


def test_images_that_vanish_or_change_while_indexing_are_quarantined(images: Path) -> None:
    unit = next(iter(layout_folder.units(str(images))))
    shutil.rmtree(images / "0")
    table = gathering.read_unit(unit, OPTIONS)
    assert len(table) == 0
    assert index_of(table).quarantined[0].kind == "caption"


def test_the_command(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "index"
    words = ["data", "index", str(images), "-o", str(out), "--processes", "1"]
    dispatch(words)
    printed = capsys.readouterr()
    assert "12 images in" in printed.out
    assert re.search(r" index: 12 of 12 images, [\d.e+]+/s\n", printed.err)  # no bar: this is no terminal
    assert "\r" not in printed.err
    with pytest.raises(InputError, match="exists; choose another name, or write over it with --replace"):
        dispatch(words)
    dispatch([*words, "--replace", "--sha256", "--tags.quality", "150:best", "1:fine", "--verify"])
    (images / "0/00.png").write_bytes(b"")
    with pytest.raises(InputError, match="1 of 12 images can't be used, more than 1%"):
        dispatch([*words, "--replace"])
    dispatch([*words, "--replace", "--max-bad-share", "0.5"])
    assert "0/00.png: the file is empty" in capsys.readouterr().out
    (images / "0/03.txt").unlink()
    with pytest.raises(InputError, match=r"1 of 11 images have no caption(?s:.*)--allow-missing"):
        dispatch([*words, "--replace", "--max-bad-share", "0.5"])
    dispatch([*words, "--replace", "--max-bad-share", "0.5", "--allow-missing"])
    assert len(read_index(out)) == 11


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tags.quality", "best"], "--tags.quality 'best': give score:tag"),
        (["--tags.quality", "x:best"], "--tags.quality 'x:best': give score:tag"),
        (["--tags.quality", "1:fine", "150:best"], "quality bounds .* from the highest"),
        (["--max-pixels", "0"], "max_pixels = 0"),
        (["--tags.table", "nowhere.json"], "nowhere.json: the tag table can't be read"),
    ],
)
def test_senseless_settings_are_named(words: list[str], message: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        dispatch(["data", "index", str(images), "-o", str(tmp_path / "index"), *words])


@pytest.mark.parametrize("words", [["--processes", "-1"], ["--max-bad-share", "2"]])
def test_senseless_numbers_are_refused(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=" ".join(words)):
        dispatch(["data", "index", str(tmp_path), "-o", str(tmp_path / "index"), *words])


def test_bad_files_of_every_kind_are_named(tmp_path: Path) -> None:
    """All kinds of bad files: each is left out with its path, its reason and a kind by which it is counted."""
    folder = tmp_path / "images"
    good = add(folder, "good.png")
    png = good.read_bytes()
    contents = {
        "cut.png": (png[:20], "damaged", "can't be decoded"),
        "empty.png": (b"", "empty", "the file is empty"),
        "rubbish.png": (b"not an image", "not an image", "not an image of an accepted format"),
        "moving.jpg": (
            encoded(Image.new("P", (8, 8)), "GIF"),
            "wrong suffix",
            "the content is GIF, but the suffix is .jpg",
        ),
        "large.png": (large(14_000, 10_000), "too large", "14000x10000 pixels exceed the limit of 100000000"),
        "giga.png": (large(40_000, 30_000), "too large", "more pixels than the limit of 100000000"),
        "bomb.png": (large(2**31 - 1, 2**31 - 1), "too large", "more pixels than the limit of 100000000"),
        "latin.png": (png, "caption", "latin.txt: not UTF-8 at byte 3 (0xe9)"),
        "nul.png": (png, "caption", "nul.txt: a NUL at byte 1"),
        "book.png": (png, "caption", "book.txt: the caption is longer than 1048576 bytes"),
        "tab\there.png": (png, "name", "the name is not UTF-8, or contains control characters"),
    }
    for name, (content, _, _) in contents.items():
        add(folder, name.replace(".jpg", ".gif") if name == "moving.jpg" else name)
        (folder / name).write_bytes(content)
    (folder / "moving.gif").unlink()
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "nul.txt").write_bytes(b"a\0b")
    (folder / "book.txt").write_bytes(b"a" * (2**20 + 1))
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "gone.png").symlink_to("nothing")
    (folder / "folder").symlink_to(folder)
    (folder / "bom.png").write_bytes(png)
    (folder / "bom.txt").write_bytes(b"\xef\xbb\xbfred")
    contents["loop.png"] = b"", "unreadable", "can't be read (Too many levels of symbolic links)"
    contents["gone.png"] = b"", "missing", "there is no such file"
    for name in ("loop", "gone"):
        (folder / f"{name}.txt").write_text("x")
    with looked_at(str(folder), IndexOptions(accepted=Accepted(own_suffix=True)), 1) as table:
        index = index_of(table)
    assert list(index.ids) == ["bom", "good"]
    assert index.captions[0] == "red"
    found = {bad.path.stem: bad for bad in index.quarantined}
    assert len(found) == len(index.quarantined) == len(contents)
    for name, (_, kind, reason) in contents.items():
        bad = found[name.rpartition(".")[0]]
        assert (bad.kind, reason in str(bad)) == (kind, True), str(bad)
        assert str(bad).isprintable()


def large(width: int, height: int) -> bytes:
    """A PNG that is only a header."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + png_chunk(b"IDAT", b"")
    )
