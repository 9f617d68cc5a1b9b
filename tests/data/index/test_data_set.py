"""Image folders with sidecars as one table."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refimpl.data.images.decode import Accepted
from refimpl.data.index.data_set import read_folder
from refimpl.errors import InputError
from tests.data.files import encoded, exif_bytes

SUFFIX_OF = {".png": "PNG", ".jpg": "JPEG", ".gif": "GIF"}


def add(
    folder: Path, name: str, caption: str | bytes | None = "a tag", size: tuple[int, int] = (8, 6)
) -> Path:
    """Write an image, and its caption unless None."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(Image.new("RGB", size), SUFFIX_OF[path.suffix.lower()]))
    if caption is not None:
        path.with_suffix(".txt").write_bytes(caption.encode() if isinstance(caption, str) else caption)
    return path


def test_a_folder_becomes_a_table(tmp_path: Path) -> None:
    add(tmp_path, "b.png", "character:alice, red", (8, 6))
    add(tmp_path, "a.JPG", None, (3, 5)).with_suffix(".caption").write_text("blue\n")
    add(tmp_path, "sub/c.d.png", "", (1, 2))
    (tmp_path / "notes.md").write_text("not an image")
    (tmp_path / "stray.txt").write_text("a caption of nothing")
    index = read_folder(tmp_path)
    assert len(index) == 3
    assert index.ids == ["a", "b", "sub/c.d"]
    assert index.paths == [tmp_path / "a.JPG", tmp_path / "b.png", tmp_path / "sub/c.d.png"]
    assert index.widths.tolist() == [3, 8, 1]
    assert index.heights.tolist() == [5, 6, 2]
    assert index.widths.dtype == index.heights.dtype == np.int64
    assert index.captions == ["blue", "alice, red", ""]
    assert index.tags == [{"general": ("blue",)}, {"character": ("alice",), "general": ("red",)}, {}]
    assert index.quarantined == []


def test_tag_classes_are_the_callers(tmp_path: Path) -> None:
    add(tmp_path, "a.png", "colour:red, character:alice")
    index = read_folder(str(tmp_path), tag_classes=("colour",))
    assert index.tags == [{"colour": ("red",), "general": ("character:alice",)}]
    assert index.captions == ["red, character:alice"]


def test_sizes_are_after_rotation(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + exif_bytes(6))
    (tmp_path / "a.txt").write_text("x")
    index = read_folder(tmp_path)
    assert (index.widths[0], index.heights[0]) == (6, 8)


def test_txt_comes_before_caption_and_suffixes_have_no_case(tmp_path: Path) -> None:
    add(tmp_path, "a.PNG", None)
    (tmp_path / "a.caption").write_text("second")
    (tmp_path / "a.TXT").write_text("first")
    assert read_folder(tmp_path).captions == ["first"]


def test_hidden_files_and_folders_are_not_read(tmp_path: Path) -> None:
    add(tmp_path, "a.png")
    (tmp_path / "._a.png").write_bytes(b"rubbish of another file system")
    add(tmp_path, ".checkpoints/b.png")
    assert read_folder(tmp_path).ids == ["a"]


def test_links_to_files_are_read_and_to_folders_not(tmp_path: Path) -> None:
    add(tmp_path, "data/a.png")
    (tmp_path / "data" / "b.png").symlink_to("a.png")
    (tmp_path / "data" / "b.txt").symlink_to("a.txt")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "link").symlink_to("data")
    assert read_folder(tmp_path / "data").ids == ["a", "b"]
    assert read_folder(tmp_path / "link").ids == ["a", "b"]
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "loop").symlink_to(tmp_path / "data")
    with pytest.raises(InputError, match="links to folders are not followed"):
        read_folder(tmp_path / "only")


@pytest.mark.parametrize("content", ["\ufeffred, blue".encode(), b"red, blue", b"red,\r\nblue\r\n"])
def test_captions_with_and_without_bom(content: bytes, tmp_path: Path) -> None:
    add(tmp_path, "a.png", content)
    assert read_folder(tmp_path).captions == ["red, blue"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9, red", r"a\.txt: not UTF-8 at byte 3 \(0xe9\)"),
        (b"\xef\xbb\xbfcaf\xe9", r"not UTF-8 at byte 6 \(0xe9\)"),
        ("red".encode("utf-16"), r"not UTF-8 at byte 0 \(0xff\)"),
        (b"red\xc3", r"not UTF-8 at byte 3 \(0xc3\)"),
        (b"r\xc3\xa9d\0", r"a NUL at byte 4"),
    ],
)
def test_captions_that_are_not_text_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    add(tmp_path, "a.png", content)
    with pytest.raises(InputError, match=message):
        read_folder(tmp_path)


def test_a_caption_that_is_a_folder_is_named(tmp_path: Path) -> None:
    add(tmp_path, "a.png", None)
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(InputError, match="no captions"):
        read_folder(tmp_path)
    (tmp_path / "b").mkdir()
    add(tmp_path / "b", "c.png", None)
    (tmp_path / "b" / "c.txt").symlink_to("nothing")
    with pytest.raises(InputError, match=r"c\.txt: the caption can't be read"):
        read_folder(tmp_path / "b")


def test_a_caption_that_is_a_pipe_is_named_and_not_waited_for(tmp_path: Path) -> None:
    add(tmp_path, "a.png", None)
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"a\.txt: the caption is not a regular file; replace it"):
        read_folder(tmp_path)


def test_no_folder_no_image_no_caption(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: there is no such folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no images in it \(looked for \.jpg"):
        read_folder(tmp_path)
    add(tmp_path, "a.png", None)
    add(tmp_path, "b.png", None)
    with pytest.raises(InputError, match=r"2 images but no captions; .* a\.png: a\.txt or a\.caption"):
        read_folder(tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        read_folder(tmp_path / "a.png")


def test_folders_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path, "a.png")
    add(tmp_path, "secret/b.png")
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match=r"secret: the folder can't be read \(Permission denied\)"):
        read_folder(tmp_path)


def test_missing_captions_are_listed_or_allowed(tmp_path: Path) -> None:
    add(tmp_path, "with.png")
    for number in range(7):
        add(tmp_path, f"{number}.png", None)
    with pytest.raises(InputError, match="7 of 8 images have no caption") as caught:
        read_folder(tmp_path)
    assert [f"{number}.png" in str(caught.value) for number in range(7)] == [True] * 5 + [False] * 2
    assert "and 2 more" in str(caught.value)
    index = read_folder(tmp_path, allow_missing=True)
    assert index.captions == [""] * 7 + ["a tag"]


@pytest.mark.parametrize(
    ("first", "second"),
    [("a.png", "a.jpg"), ("a.png", "A.png"), ("\u00e9.png", "e\u0301.png"), ("ß.png", "SS.png")],
)
def test_ids_that_could_be_confused_are_named_with_both_paths(
    first: str, second: str, tmp_path: Path
) -> None:
    paths = [add(tmp_path, first), add(tmp_path, second)]
    with pytest.raises(InputError, match="two images have the id") as caught:
        read_folder(tmp_path)
    assert all(str(path) in str(caught.value) for path in paths)
    assert ("different Unicode normal forms" in str(caught.value)) == (second == "e\u0301.png")


def test_ids_are_in_one_normal_form(tmp_path: Path) -> None:
    add(tmp_path, "e\u0301.png")
    assert read_folder(tmp_path).ids == ["\u00e9"]


@pytest.mark.parametrize("name", ["b\udce9", "b\n", "\x1b[31mb"])
def test_file_names_that_are_not_text_are_named(name: str, tmp_path: Path) -> None:
    add(tmp_path, "a.png")
    add(tmp_path, f"{name}.png")
    with pytest.raises(InputError, match=r"b.*\.png: the name is not UTF-8, or contains control") as caught:
        read_folder(tmp_path)
    assert all(line.isprintable() for line in str(caught.value).split("\n"))


def test_few_bad_images_are_set_aside_by_name(tmp_path: Path) -> None:
    for number in range(100):
        add(tmp_path, f"{number:03}.png")
    (tmp_path / "050.png").write_bytes(b"")
    index = read_folder(tmp_path)
    assert len(index) == len(index.captions) == index.widths.size == 99
    assert "050" not in index.ids
    assert [(bad.path.name, bad.reason) for bad in index.quarantined] == [("050.png", "the file is empty")]
    (tmp_path / "051.png").write_bytes(b"rubbish")
    with pytest.raises(InputError, match=r"2 of 100 images can't be used, more than 1%") as caught:
        read_folder(tmp_path)
    assert "050.png: the file is empty" in str(caught.value)
    assert "051.png: not an image" in str(caught.value)
    assert len(read_folder(tmp_path, max_bad_share=0.02)) == 98


def test_damage_behind_the_header_is_found_when_asked_for(tmp_path: Path) -> None:
    path = add(tmp_path, "a.png", size=(300, 300))
    path.write_bytes(path.read_bytes()[:200])
    assert len(read_folder(tmp_path)) == 1
    with pytest.raises(InputError, match=r"a\.png: can't be decoded"):
        read_folder(tmp_path, verify=True)
    add(tmp_path, "a.png", size=(7, 9))
    assert read_folder(tmp_path, verify=True).heights.tolist() == [9]


def test_what_is_let_in_is_the_callers(tmp_path: Path) -> None:
    add(tmp_path, "a.png", size=(100, 100))
    with pytest.raises(InputError, match="100x100 pixels exceed the limit of 99"):
        read_folder(tmp_path, accepted=Accepted(max_pixels=99))
    add(tmp_path / "gif", "a.gif")
    with pytest.raises(InputError, match="can't be used"):
        read_folder(tmp_path / "gif", accepted=Accepted(formats=("PNG",)))


def test_take_keeps_rows_together(tmp_path: Path) -> None:
    for number in range(4):
        add(tmp_path, f"{number}.png", f"tag {number}", (number + 1, 2 * number + 1))
    taken = read_folder(tmp_path).take(np.array([3, 1]))
    assert taken.ids == ["3", "1"]
    assert [path.name for path in taken.paths] == ["3.png", "1.png"]
    assert taken.widths.tolist() == [4, 2]
    assert taken.heights.tolist() == [7, 3]
    assert taken.captions == ["tag 3", "tag 1"]
    assert taken.tags == [{"general": ("tag 3",)}, {"general": ("tag 1",)}]
    assert len(taken.take([])) == taken.take([]).widths.size == 0
