"""Shards, lookups and manifests: what is written is read, and what is damaged is named."""

import contextlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from refimpl.errors import InputError
from refimpl.storage.shards import map_shard, shard_bytes, verify_shard
from refimpl.storage.store import MANIFEST, find_rows, fingerprint, listed, open_store
from tests import strategies


@given(tensors=strategies.shard_tensors())
def test_safetensors_reads_what_we_write_and_so_do_we(
    tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("shards") / "a.safetensors"
    path.write_bytes(shard_bytes(tensors, {"b": "ü", "a": "1"}))
    assert path.read_bytes() == shard_bytes(dict(reversed(tensors.items())), {"a": "1", "b": "ü"})
    theirs, ours = load_file(path), map_shard(path)
    assert theirs.keys() == ours.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        for read in (theirs[name], ours.tensors[name]):
            assert read.dtype == tensor.dtype
            assert read.shape == tensor.shape
            assert (
                read.reshape(-1).clone().view(torch.uint8).equal(tensor.reshape(-1).clone().view(torch.uint8))
            )
    assert ours.metadata.items() >= {"a": "1", "b": "ü"}.items()
    verify_shard(ours)


@given(cut=st.integers(0, 400), mutated=st.integers(0, 399), bit=st.integers(0, 7))
def test_damage_is_a_bad_shard_or_a_wrong_digest(
    cut: int, mutated: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever bit is flipped and wherever the file ends: a named error, or the very tensors."""
    path = tmp_path_factory.mktemp("shards") / "a.safetensors"
    tensors = {"x": torch.arange(24.0).view(2, 3, 4), "n": torch.arange(5)}
    whole = shard_bytes(tensors, {"group": "8x8"})
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(InputError, match=r"a\.safetensors (is not|:)"):
        map_shard(path)
    damaged = bytearray(whole)
    damaged[mutated % len(whole)] ^= 1 << bit
    path.write_bytes(damaged)
    with contextlib.suppress(InputError):
        shard = map_shard(path)
        verify_shard(shard)
        found = {name: tensor.tolist() for name, tensor in shard.tensors.items()}
        assert found == {
            name: tensor.tolist() for name, tensor in tensors.items()
        }  # only metadata may differ


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole shard of a cache: it has 0 bytes"),
        (struct.pack("<Q", 2**60) + b"{}", "its header would be .* bytes long and end at byte .* of 10"),
        (struct.pack("<Q", 2) + b"[]", "not a whole shard of a cache: its header is not a JSON table"),
        (struct.pack("<Q", 2) + b"{}x", "describes 0 bytes of tensors, the file holds 1"),
        (
            struct.pack("<Q", 3) + b"\xff\xff\xff",
            "not a whole shard of a cache: its header is not a JSON table",
        ),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        map_shard(path)
    with pytest.raises(InputError, match=r"can't be read \(No such file or directory\)"):
        map_shard(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is not a regular file"):
        map_shard(tmp_path)


@given(rows=strategies.lookup_tables())
def test_rows_are_found_as_a_plain_search_finds_them(rows: tuple[np.ndarray, np.ndarray]) -> None:
    table, asked = rows
    table = table[np.argsort(table[:, 0], kind="stable")]
    found = find_rows(table[:, 0], table[:, 1:], asked[:, 0], asked[:, 1:])
    for row, place in zip(asked.tolist(), found.tolist(), strict=True):
        expected = [i for i, other in enumerate(table.tolist()) if other == row]
        assert place == (expected[0] if expected else -1)


def test_a_fingerprint_does_not_depend_on_the_order() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_long_lists_are_shortened() -> None:
    assert listed([]) == ""
    assert listed([1, 2]) == "1, 2"
    assert listed(list(range(9))) == "0, 1, 2, 3, 4 and 4 more"


def test_a_folder_without_a_manifest_and_one_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no finished cache \(cache.json is missing\)"):
        open_store(tmp_path)
    (tmp_path / MANIFEST).write_text('{"format": 1, "encodin": {}}')
    with pytest.raises(InputError, match="unknown key encodin; did you mean encoding"):
        open_store(tmp_path)
    (tmp_path / MANIFEST).write_text(
        '{"format": 1, "encoding": {}, "shards": [], "lookup": "l", "details": {}}'
    )
    with pytest.raises(InputError, match="run `refimpl cache` again, which replaces it"):
        open_store(tmp_path)


@pytest.mark.parametrize("field", ["shards", "lookup"])
@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "", ".", ".."])
def test_a_manifest_names_files_of_its_folder_alone(field: str, name: str, tmp_path: Path) -> None:
    table = {"format": 1, "encoding": {}, "shards": [], "lookup": "lookup.safetensors", "details": {}}
    table[field] = [name] if field == "shards" else name
    (tmp_path / MANIFEST).write_text(json.dumps(table))
    with pytest.raises(InputError, match="which is no file name; write the cache again"):
        open_store(tmp_path)
