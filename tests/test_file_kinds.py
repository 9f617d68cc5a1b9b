"""Files named for what their bytes are, by the one who reads weights and the one who reads images."""

import gzip
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from refimpl.cache.made_for import config_of_cache
from refimpl.data.images.decode import BadImage, decode, read_size
from refimpl.errors import InputError
from refimpl.file_kinds import PEEK, kind_of, named_kind
from refimpl.interop.run.checkpoints import find_checkpoint, read_checkpoint
from refimpl.report.measured_latents import measured_figures
from refimpl.run.presets import load_config
from refimpl.run.settings.kohya import from_kohya
from refimpl.run.settings.onetrainer import from_onetrainer
from refimpl.run.settings.recognised import read_foreign
from refimpl.storage import safetensors_file
from tests.data.files import encoded

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
IMAGES = {"JPEG": "a JPEG image", "PNG": "a PNG image", "WEBP": "a WebP image", "GIF": "a GIF image",
          "BMP": "a BMP image", "TIFF": "a TIFF image", "AVIF": "an AVIF image"}  # fmt: skip


def zipped(name: str) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr(name, b"x" * 100)
    return file.getvalue()


def saved_by_torch(**options: bool) -> bytes:
    torch.save({"x": torch.ones(3)}, file := io.BytesIO(), **options)
    return file.getvalue()


def table_as(form: str) -> bytes:
    table, file = pa.table({"x": [1, 2]}), io.BytesIO()
    if form == "parquet":
        parquet.write_table(table, file)
    else:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    return file.getvalue()


def saved_by_numpy() -> bytes:
    np.save(file := io.BytesIO(), np.ones(3))
    return file.getvalue()


def made() -> dict[str, tuple[bytes, str]]:
    """Name → a file as its own tool writes it, and what it is."""
    return {
        "empty": (b"", "an empty file"),
        "zip": (zipped("a.txt"), "a zip archive"),
        "ckpt": (saved_by_torch(), "a zip archive"),
        "old ckpt": (saved_by_torch(_use_new_zipfile_serialization=False), "a pickle"),
        "pickle": (pickle.dumps({"x": 1}, 4), "a pickle"),
        "gzip": (gzip.compress(b"x"), "a gzip archive"),
        "parquet": (table_as("parquet"), "a parquet table"),
        "arrow": (table_as("arrow"), "an Arrow file"),
        "npy": (saved_by_numpy(), "a NumPy array"),
        "gguf": (b"GGUF\3\0\0\0" + bytes(100), "a GGUF file"),
        "lfs": (POINTER, "a Git LFS pointer"),
        "html": (b"\n <!doctype HTML><html>", "a web page"),
        "bom": (b"\xef\xbb\xbf<html lang='en'>", "a web page"),
        "json": (b'{"_class_name": "UNet2DConditionModel"}', "a JSON file or other text"),
        "svg": (b"<?xml version='1.0'?><svg/>", "an SVG drawing"),
        "text": ("Grüße, a caption".encode(), "a text file"),
        "sqlite": (b"SQLite format 3\0" + bytes(84), "an SQLite database"),
    } | {
        form: (encoded(Image.new("RGB", (40, 24), (200, 9, 9)), form), what) for form, what in IMAGES.items()
    }  # fmt: skip


MADE = made()


@pytest.mark.parametrize("name", MADE)
def test_each_file_is_known_by_its_bytes(name: str) -> None:
    content, what = MADE[name]
    kind = kind_of(content[:PEEK])
    assert kind is not None
    assert kind.what == what


@pytest.mark.parametrize("name", [name for name in MADE if name != "empty"])
def test_the_reader_of_weights_says_what_it_was_given(name: str, tmp_path: Path) -> None:
    content, what = MADE[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        safetensors_file.read(path)
    assert str(refused.value).startswith(f"{path} is {what}, not a safetensors file; ")
    assert "header" not in str(refused.value)


@pytest.mark.parametrize("name", [name for name in MADE if name not in IMAGES and name != "empty"])
def test_the_reader_of_images_says_what_it_was_given(name: str, tmp_path: Path) -> None:
    content, what = MADE[name]
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    for read in (decode, read_size):
        with pytest.raises(BadImage, match=f"not an image of an accepted format .*: it is {what}"):
            read(path)


def test_a_damaged_image_is_still_called_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "photo.webp"
    path.write_bytes(MADE["PNG"][0][:12] + b"\xff" * 40)
    with pytest.raises(BadImage, match=r"PNG"):
        decode(path)


@pytest.mark.parametrize("length", [640, 896, 1152, 1280])
def test_a_header_as_long_as_a_pickle_begins_is_read(length: int, tmp_path: Path) -> None:
    """A header of 640 bytes begins with 80 02, as a pickle of protocol 2 does."""
    path = tmp_path / "model.safetensors"
    empty = len('{"__metadata__":{"note":""}}')
    safetensors_file.write(path, {}, {"note": "n" * (length - empty)})
    assert int.from_bytes(path.read_bytes()[:8], "little") == length
    assert safetensors_file.read(path) == ({}, {"note": "n" * (length - empty)})


@given(st.binary(max_size=PEEK))
def test_any_bytes_are_looked_at_without_error(begin: bytes) -> None:
    kind = kind_of(begin)
    assert kind is None or kind.what.startswith(("a ", "an ", "macOS"))


def test_text_cut_within_a_letter_is_text() -> None:
    text = ("x" + "é" * PEEK).encode()
    assert len(text[:PEEK]) == PEEK
    assert kind_of(text[:PEEK]) == kind_of(b"text")
    assert kind_of("é".encode()[:1]) is None


READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "settings": (lambda path: load_config(str(path)), "{path} is {what}, not a file of settings; give a TOML or"),
    "import": (read_foreign, "{path} is {what}, not a file of settings; give a TOML or JSON file"),
    "dataset_config": (
        lambda path: from_kohya({"dataset_config": str(path)}, "."),
        "dataset_config {path} is {what}, not a file of settings; give a TOML file",
    ),
    "concepts": (
        lambda path: from_onetrainer({"concept_file_name": str(path)}, "."),
        "concept_file_name {path} is {what}, not a file of concepts; give the JSON file that OneTrainer writes",
    ),
    "statistics": (
        lambda path: measured_figures(path, path.parent),
        "--statistics {path} is {what}, not a file written by `refimpl stats`; give the .json file",
    ),
    "cache": (lambda path: config_of_cache(str(path)), "{path} is {what}, not the folder of a cache; write a"),
    "sample": (lambda path: read_checkpoint(path, {}), "{path} is {what}, not a run; give a run folder or one"),
    "export": (find_checkpoint, "{path} is {what}, not a run; give a run folder or one of its checkpoints"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["JPEG", "gzip"])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_names_a_file_for_what_it_is(reader: str, kind: str, tmp_path: Path) -> None:
    content, what = MADE[kind]
    path = tmp_path / "given.png"
    path.write_bytes(content)
    read, said = READERS[reader]
    with pytest.raises(InputError) as refused:
        read(path)
    told = said.format(path=path, what=what)
    assert str(refused.value).startswith(told.partition(";")[0] + "; unpack it" if kind == "gzip" else told)


def test_text_that_only_another_program_reads_is_named_too(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(POINTER)
    with pytest.raises(
        InputError, match=r"a\.toml is a Git LFS pointer, .*fetch the file itself with git lfs pull"
    ):
        load_config(str(path))


def test_what_is_text_or_unknown_or_no_file_has_no_name(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (b"", b"{}", b"text", b"\xfe\x00\x01"):
        path.write_bytes(content)
        assert named_kind(path, "a preset", "give one") is None
    assert named_kind(tmp_path, "a preset", "give one") is None
    assert named_kind(tmp_path / "none", "a preset", "give one") is None
    path.write_bytes(b"text")
    assert (
        named_kind(path, "a run", "give one", is_text=False) == f"{path} is a text file, not a run; give one"
    )
    with pytest.raises(InputError, match=r"a is a text file, not a run; give a run folder"):
        find_checkpoint(path)
    path.write_bytes(b"\xfe\x00\x01")
    with pytest.raises(InputError, match=r"a is a file, not a run; give a run folder"):
        find_checkpoint(path)
    with pytest.raises(
        InputError, match=r"a is a file, not the folder of a cache; write a cache with `refimpl"
    ):
        config_of_cache(str(path))
