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
from refimpl.storage import safetensors_file
from refimpl.storage.safetensors_file import CHUNK
from refimpl.storage.safetensors_header import DTYPES
from tests.interop.checkpoints import bits, same_bits
from tests.storage.test_committed import largest_file
from tests.strategies import stored_tensors


def header_of(**entries: Any) -> bytes:
    return json.dumps(entries).encode()


def write_raw(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


ONE = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}
TWO = {"dtype": "F32", "shape": [1, 1], "data_offsets": [4, 8]}


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


def entry(**changes: Any) -> bytes:
    return header_of(x={**ONE, **changes})


BROKEN = {
    "gap": (header_of(x=ONE, y={**TWO, "data_offsets": [6, 10]}), "leaves a gap"),
    "overlap": (header_of(x=ONE, y={**TWO, "data_offsets": [2, 6]}), "overlaps"),
    "same bytes twice": (header_of(x=ONE, y=ONE), "overlaps"),
    "twice": (b'{"x":%s,"x":%s}' % (json.dumps(ONE).encode(), json.dumps(ONE).encode()), "'x' stands twice"),
    "field twice": (b'{"x":{"dtype":"F16","dtype":"F16","shape":[2],"data_offsets":[0,4]}}', "stands twice"),
    "too few bytes": (header_of(x=ONE, y=TWO), "describes 8 bytes of tensors, the file holds 4"),
    "too many bytes": (header_of(), "describes 0 bytes of tensors, the file holds 4"),
    "wrong dtype": (entry(dtype="F32"), "takes 8 bytes, its data_offsets hold 4"),
    "unknown dtype": (entry(dtype="F5"), "dtype 'F5'; known are F64"),
    "dtype a list": (entry(dtype=["F16"]), r"dtype \['F16'\]"),
    "negative side": (entry(shape=[-2]), r"impossible shape \[-2\]"),
    "negative sides": (entry(shape=[-1, -2]), "impossible shape"),
    "side a truth": (entry(shape=[True, 2]), "impossible shape"),
    "side a fraction": (b'{"x":{"dtype":"F16","shape":[2.0],"data_offsets":[0,4]}}', "not a whole number"),
    "side NaN": (b'{"x":{"dtype":"F16","shape":[NaN],"data_offsets":[0,4]}}', "NaN is not a whole number"),
    "shape no list": (entry(shape=2), "impossible shape 2"),
    "huge empty": (entry(shape=[0, 2**62, 2**62], data_offsets=[0, 0]), "impossible shape"),
    "twenty sides": (entry(shape=[1] * 19 + [2]), "impossible shape"),
    "a number of 5000 digits": (
        b'{"x":{"dtype":"F16","shape":[%s],"data_offsets":[0,4]}}' % (b"1" * 5000), "not a JSON table"
    ),
    "offsets backwards": (entry(data_offsets=[4, 0]), r"impossible data_offsets \[4, 0\]"),
    "offset negative": (entry(data_offsets=[-4, 0]), "impossible data_offsets"),
    "one offset": (entry(data_offsets=[4]), "impossible data_offsets"),
    "beyond": (entry(data_offsets=[2**40, 2**40 + 4]), "leaves a gap"),
    "no shape": (header_of(x={"dtype": "F16", "data_offsets": [0, 4]}), "needs dtype, shape and data_offsets"),
    "one more field": (entry(strides=[1]), "needs dtype, shape and data_offsets"),
    "entry a number": (header_of(x=3), "needs dtype"),
    "metadata numbers": (header_of(__metadata__={"a": 1}, x=ONE), "must map strings to strings"),
    "metadata a list": (header_of(__metadata__=["a"], x=ONE), "must map strings to strings"),
    "lone surrogate": (b'{"\\ud800":%s}' % json.dumps(ONE).encode(), "not valid Unicode"),
    "not UTF-8": (b'{"\xff":%s}' % json.dumps(ONE).encode(), "not a JSON table"),
    "a list": (b"[1, 2]", "not a JSON table but list"),
    "not JSON": (b"{", "not a JSON table"),
    "nothing": (b"", "not a JSON table"),
    "deep": (b'{"x":' * 100_000, "not a JSON table"),
    "space first": (b" {}", "not a JSON table"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_headers_are_refused(name: str, tmp_path: Path) -> None:
    header, message = BROKEN[name]
    path = write_raw(tmp_path / "broken.safetensors", header, b"\0" * 4)
    with pytest.raises(InputError, match=rf"broken\.safetensors.*{message}"):
        safetensors_file.read(path)


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
    with pytest.raises(InputError, match="cannot be read"):
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
        (b"anything else", "not safetensors: .* copy or download it again"),
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
