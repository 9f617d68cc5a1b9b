"""Mutated safetensors headers give an InputError or the right shapes, nothing else; 200,000 in `nox -s fuzz`."""

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from refimpl.errors import InputError
from refimpl.interop import single_file
from refimpl.interop.checkpoint import Checkpoint, Prediction
from refimpl.interop.network.clip_keys import ClipSizes, tower_shapes
from refimpl.latents.scale_shift import NOVELAI_ANIME
from refimpl.latents.vae import VAE, VAEConfig
from refimpl.model.unet import UNet, UNetConfig
from refimpl.storage.safetensors_file import DTYPES
from tests.interop.checkpoints import PARTS

SIZES = ClipSizes(vocabulary=5, positions=77, width=2, layers=1, hidden=3, projection=2)
NUMBERS = (-1, 0, 1, 2, 3, 4, 7, 8, 2**31, 2**53 + 1, 2**63, 2**64, 10**40)
LITERALS = (
    b"NaN",
    b"-Infinity",
    b"null",
    b"true",
    b"1e9",
    b"0.5",
    b'"',
    b"{}",
    b"[]",
    b"\xff",
    b"\\ud800",
    b"-",
    b"\0",
)


def small_file(path: Path) -> Checkpoint:
    """A complete model of 150 tensors, each as small as possible."""
    unet = UNet(UNetConfig(4, 4, 2, (1,), (1,), 1, 1, 2, 3, 5, 1))
    vae = VAE(VAEConfig(3, 4, 1, (1,), 1, 1))
    towers = {
        name: {key: torch.rand(shape) for key, shape in tower_shapes(sizes).items()}
        for name, sizes in (("text_l", ClipSizes(5, 77, 2, 1, 3, None)), ("text_g", SIZES))
    }
    prediction = Prediction("v", True, "given")
    checkpoint = Checkpoint(
        unet.state_dict(),
        vae.state_dict(),
        **towers,
        prediction=prediction,
        scale_shift=NOVELAI_ANIME,
        metadata={"note": "é"},
    )
    single_file.save(checkpoint, path, torch.float16)
    return single_file.load(path)


def shapes(checkpoint: Checkpoint) -> dict[str, dict[str, tuple[int, ...]]]:
    return {
        part: {key: tuple(value.shape) for key, value in (getattr(checkpoint, part) or {}).items()}
        for part in PARTS
    }


def mutate(draw: random.Random, data: bytes) -> bytes:
    """The file with one to three mutations: of its bytes, its header, its header's length, or its end."""
    length = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + length], data[8 + length :]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        header = draw.choice((_bytes, _literal, _table, _table))(draw, header)
    length = len(header)
    wrong = draw.random()
    if wrong < 0.05:
        length = draw.choice((0, 1, length - 1, length + 1, len(data), 2**31, 2**63, 2**64 - 1))
    elif wrong < 0.1:
        body = body[: draw.randrange(len(body))]
    elif wrong < 0.12:
        body += bytes(draw.randrange(1, 9))
    return struct.pack("<Q", length) + header + body


def _bytes(draw: random.Random, header: bytes) -> bytes:
    at = draw.randrange(len(header) + 1)
    cut = draw.choice((0, 1, 1, 1, 2, 20))
    return header[:at] + draw.randbytes(draw.choice((0, 1, 1, 2))) + header[at + cut :]


def _literal(draw: random.Random, header: bytes) -> bytes:
    at = draw.randrange(len(header) + 1)
    return header[:at] + draw.choice(LITERALS) + header[at + draw.choice((0, 1, 2)) :]


def _table(draw: random.Random, header: bytes) -> bytes:
    try:
        table = json.loads(header)
        keys = [key for key in table if key != "__metadata__"]
        first, second = draw.choice(keys), draw.choice(keys)
        entry, other = table[first], table[second]
        _change(draw, table, first, second, entry, other)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return header  # an earlier change left no table to change
    return json.dumps(table, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _change(draw: random.Random, table: dict, first: str, second: str, entry: Any, other: Any) -> None:
    kind = draw.randrange(10)
    if kind == 0:
        entry["dtype"] = draw.choice((*DTYPES, "F4", "", None, 16))
    elif kind == 1:
        entry["shape"][draw.randrange(len(entry["shape"]))] = draw.choice(NUMBERS)
    elif kind == 2:
        draw.shuffle(entry["shape"])
    elif kind == 3:
        entry["shape"] = draw.choice(
            ([], [1, *entry["shape"]], [*entry["shape"], 1], [0], entry["shape"][1:])
        )
    elif kind == 4:
        entry["data_offsets"][draw.randrange(2)] = draw.choice(NUMBERS)
    elif kind == 5:
        entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
    elif kind == 6:
        table[first], table[second] = other, entry
    elif kind == 7:
        del table[first]
    elif kind == 8:
        at = draw.randrange(len(first))
        table[first[:at] + draw.choice("._x0") + first[at + 1 :]] = table.pop(first)
    else:
        metadata = table["__metadata__"]
        key = draw.choice((*metadata, "modelspec.prediction_type", "refimpl.zero_terminal_snr"))
        metadata[key] = draw.choice(("", "v", "epsilon", "{}", "[1]", '{"mean": 1}', "\ud800", 3, None))


def fuzz(count: int, folder: Path) -> tuple[int, int]:
    """(accepted, refused) of `count` mutated files; any other outcome is an error."""
    path = folder / "small.safetensors"
    expected = shapes(small_file(path))
    data, accepted = path.read_bytes(), 0
    mutated = folder / "mutated.safetensors"
    for number in range(count):
        wrong = mutate(random.Random(number), data)
        mutated.unlink(
            missing_ok=True
        )  # a file written over another is put to the disk at once, and this waits
        mutated.write_bytes(wrong)
        try:
            checkpoint = single_file.load(mutated)
        except InputError:
            continue
        except BaseException as error:
            raise AssertionError(f"mutation {number} ended in {type(error).__name__}: {error}") from error
        accepted += 1
        assert shapes(checkpoint) == expected, f"mutation {number} changed a shape and was taken"
        with safe_open(str(mutated), "pt") as file:  # nothing is taken that the safetensors package refuses
            assert file.get_tensor("v_pred").numel() == 0
    return accepted, count - accepted


def test_five_hundred_mutations(tmp_path: Path) -> None:
    accepted, refused = fuzz(500, tmp_path)
    assert refused > 300
    assert accepted > 10  # whitespace, notes, halves of another kind: some mutations are harmless


@pytest.mark.fuzz
def test_two_hundred_thousand_mutations(tmp_path: Path) -> None:
    accepted, refused = fuzz(200_000, tmp_path)
    assert refused > 120_000
    assert accepted > 4_000
