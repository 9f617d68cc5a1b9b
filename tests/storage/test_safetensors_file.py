"""The safetensors container: any tensors to the bit, any broken file as our error, an old file kept."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from refimpl.errors import InputError
from refimpl.storage import safetensors_file, safetensors_header
from refimpl.storage.safetensors_file import CHUNK, DTYPES
from refimpl.storage.safetensors_header import ITEM_SIZES
from tests.folders import largest_file
from tests.interop.checkpoints import bits, same_bits
from tests.strategies import stored_tensors


def header_of(**entries: Any) -> bytes:
    return json.dumps(entries).encode()


def write_raw(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


# --- what is written is what is read, here and by the safetensors package ---


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=8), stored_tensors(), max_size=6), st.text(max_size=5))
def test_any_tensors_come_back_to_the_bit(
    tmp_path: Path, tensors: dict[str, torch.Tensor], note: str
) -> None:
    tensors.pop("__metadata__", None)
    path = tmp_path / "file.safetensors"
    safetensors_file.write(path, tensors, {"note": note})
    ours, metadata = safetensors_file.read(path)
    assert metadata == {"note": note}
    assert same_bits(ours, tensors)
    assert same_bits(load_file(str(path)), tensors)
    with safe_open(str(path), "pt") as file:
        assert file.metadata() == {"note": note}


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=8), stored_tensors(), max_size=6))
def test_files_of_the_safetensors_package_are_read(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop("__metadata__", None)
    path = tmp_path / "file.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, str(path))
    assert same_bits(safetensors_file.read(path)[0], tensors)


@settings(max_examples=30)
@given(st.dictionaries(st.text("abc.", min_size=1, max_size=8), stored_tensors(), max_size=6))
def test_the_bytes_are_those_of_the_safetensors_package(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    """Where no two dtypes have one width, which the package tells apart."""
    widths: dict[int, torch.dtype] = {}
    tensors = {
        key: value.contiguous() for key, value in tensors.items()
        if widths.setdefault(value.dtype.itemsize, value.dtype) == value.dtype
    }  # fmt: skip
    save_file(tensors, str(tmp_path / "theirs"))
    safetensors_file.write(tmp_path / "ours", tensors)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_many_files_are_mapped_without_keeping_them_open(tmp_path: Path) -> None:
    safetensors_file.write(tmp_path / "file", {"x": torch.ones(3)})
    before = len(os.listdir("/dev/fd"))
    held = [safetensors_file.read(tmp_path / "file")[0] for _ in range(20)]
    assert len(os.listdir("/dev/fd")) == before
    assert all(tensors["x"].tolist() == [1, 1, 1] for tensors in held)


def test_each_tensor_is_copied_alone(tmp_path: Path) -> None:
    """One that is saved or sent elsewhere takes no other along."""
    safetensors_file.write(tmp_path / "file", {"x": torch.ones(3), "y": torch.ones(1000)})
    assert safetensors_file.read(tmp_path / "file")[0]["x"].untyped_storage().nbytes() == 12


def test_a_header_that_none_could_read_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_header, "MAX_HEADER", 64)
    with pytest.raises(
        InputError, match=r"file: its header would be \d+ bytes long, above 64; write several"
    ):
        safetensors_file.write(tmp_path / "file", {"x" * 40: torch.ones(3)})
    assert not list(tmp_path.iterdir())


def test_parts_are_joined_and_views_straightened(tmp_path: Path) -> None:
    one, two, turned = torch.randn(2, 3), torch.randn(4, 3), torch.randn(3, 5).t()
    path = tmp_path / "file.safetensors"
    safetensors_file.write(path, {"joined": (one, two), "turned": turned})
    assert same_bits(safetensors_file.read(path)[0], {"joined": torch.cat([one, two]), "turned": turned})


@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16, torch.float32])
def test_conversion_rounds_once(source: torch.dtype, target: torch.dtype, tmp_path: Path) -> None:
    """Longer than a piece, with what rounds, what is no number, and both zeros."""
    special = torch.tensor([0.0, -0.0, 1 + 2**-9, 1 + 2**-8, 6e4, -1e-7, torch.inf, -torch.inf, torch.nan])
    tensor = torch.cat([torch.randn(CHUNK + 5), special]).to(source)
    path = tmp_path / "file.safetensors"
    safetensors_file.write(path, {"x": tensor}, dtypes={"x": target})
    written = safetensors_file.read(path)[0]["x"]
    assert written.dtype == target
    assert torch.equal(written.view(-1).nan_to_num(7), tensor.to(target).nan_to_num(7))


def test_what_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_text("old")
    with pytest.raises(InputError, match=r"file\.safetensors: tensor x has values beyond float16's 65504"):
        safetensors_file.write(path, {"x": torch.tensor([1.0, 65520.0])}, dtypes={"x": torch.float16})
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.safetensors"]
    with pytest.raises(InputError, match="complex64, which safetensors cannot hold"):
        safetensors_file.write(path, {"x": torch.zeros(2, dtype=torch.complex64)})


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    safetensors_file.write(path, {"x": torch.ones(3)})
    before = path.read_bytes()
    with (
        largest_file(5000),
        pytest.raises(InputError, match=r"could not write .*: File too large; free space"),
    ):
        safetensors_file.write(path, {"x": torch.ones(4000)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["file.safetensors"]


def test_the_old_file_stays_readable_while_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    safetensors_file.write(path, {"x": torch.ones(3)})
    mapped = safetensors_file.read(path)[0]
    safetensors_file.write(path, {"x": mapped["x"]}, dtypes={"x": torch.bfloat16})
    assert mapped["x"].tolist() == [1, 1, 1]
    mapped["x"][0] = 5  # a private map
    assert safetensors_file.read(path)[0]["x"].tolist() == [1, 1, 1]


def test_a_header_of_any_length_is_read(tmp_path: Path) -> None:
    """Tensors then lie at odd addresses."""
    data = torch.arange(6, dtype=torch.float32)
    for spaces in range(8):
        entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
        path = write_raw(tmp_path / "odd", header_of(x=entry) + b" " * spaces, bits(data))
        assert torch.equal(safetensors_file.read(path)[0]["x"], data.view(2, 3))


# --- broken files ---


def test_files_cut_anywhere_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    safetensors_file.write(whole, {"x": torch.ones(3), "y": torch.empty(0)})
    data, part = whole.read_bytes(), tmp_path / "part"
    for length in range(len(data)):
        part.write_bytes(data[:length])
        with pytest.raises(InputError, match="part"):
            safetensors_file.read(part)


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 100_000_001, 10**6])
def test_lengths_that_lie_are_refused(length: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its header would"):
        safetensors_file.read(write_raw(tmp_path / "lies", b"{}", length=length))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, message in (
        ("", "not a regular"),
        ("pipe", "not a regular"),
        ("none", "No such"),
        ("loop", "link"),
    ):
        with pytest.raises(InputError, match=message):
            safetensors_file.read(tmp_path / name)
    with pytest.raises(InputError, match="can't be read"):
        safetensors_file.read("nul\0byte")


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02}q", b"\x80\x04\x95"])
def test_pickles_are_refused_with_the_way_out(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(start + b"\0" * 100)
    with pytest.raises(InputError, match=r"can run code .* torch\.load\(FILE, weights_only=True\)"):
        safetensors_file.read(path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"GGUF\3", "a GGUF file.* use the .safetensors it was made from"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"anything else", "not a whole safetensors file: .* copy or download it again"),
    ],
)
def test_other_files_are_told_from_weights(start: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(start + b"\xff" * 100)
    with pytest.raises(InputError, match=message) as error:
        safetensors_file.read(path)
    assert "run code" not in str(error.value)


def test_every_dtype_has_one_name() -> None:
    assert len(set(DTYPES.values())) == len(DTYPES)
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == ITEM_SIZES


# --- many names ---


def test_metadata_that_holds_json_is_no_crowd_of_names(tmp_path: Path) -> None:
    """kohya's metadata counts every tag of the data set, as JSON within a string."""
    counts = json.dumps({f"tag {number}": number for number in range(260_000)})
    safetensors_file.write(tmp_path / "a.safetensors", {"x": torch.zeros(1)}, {"ss_tag_frequency": counts})
    assert safetensors_file.read(tmp_path / "a.safetensors")[1] == {"ss_tag_frequency": counts}


def test_the_largest_model_is_read_and_a_larger_one_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_header, "MAX_NAMES", 500)
    tensors = {f'"{number}\\': torch.zeros(0) for number in range(500)}
    safetensors_file.write(tmp_path / "a.safetensors", tensors)
    assert set(safetensors_file.read(tmp_path / "a.safetensors")[0]) == set(tensors)
    with pytest.raises(
        InputError, match="501 tensors and entries of metadata, above 500; write several files"
    ):
        safetensors_file.write(tmp_path / "b.safetensors", tensors, {"a": "b"})
