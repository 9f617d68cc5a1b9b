"""Mutated LoRA files and PEFT settings give an InputError or complete adapters that fit, nothing else."""

import json
import math
import random
import struct
from pathlib import Path

import pytest

from refimpl.errors import InputError
from refimpl.interop.lora import files as lora_files
from refimpl.interop.lora.files import LoRAFile
from refimpl.interop.lora.keys import places, spellings
from refimpl.interop.lora.peft_config import METADATA_KEY
from refimpl.model.lora.adapters import ALPHA, DOWN, UP
from tests.interop.lora.test_files import write
from tests.interop.lora_examples import ARCHITECTURE, diffusers_spelled, lora_file, networks, peft
from tests.interop.single_file.test_fuzz import mutate

SHAPES = {(place.part, place.module): place.shape for place in places(ARCHITECTURE)}
WORDS = (  # parts of keys, of every spelling that is known and of some that are not
    "lora_unet_", "lora_te1_", "lora_te2_", "lora_te_", "unet.", "text_encoder.", "base_model.model.", "text_model.",
    ".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight", ".lora_A.x.weight", ".alpha",
    ".dora_scale", ".lora_mid.weight", ".diff", "_0_", "_1_", "input_blocks", "double_blocks", "*", "\n", "é", "",
)  # fmt: skip
VALUES = (
    "0",
    "1",
    "-3",
    "2.5",
    "1e400",
    "NaN",
    "null",
    "true",
    '"8"',
    "[]",
    "{}",
    '{"a": 1}',
    '{"(a+)+": 1}',
    "",
)
FIELDS = ("lora_alpha", "r", "use_rslora", "use_dora", "peft_type", "alpha_pattern", "unet.lora_alpha", "é")


def small_files(folder: Path) -> list[bytes]:
    """One file with kohya's keys and one with PEFT's, for a few modules of every network."""
    parts = networks(1, 2.0, ("*.attn1.to_q", "*.op"))
    example = lora_file(parts, note="é")
    lora_files.save(example, folder / "kohya.safetensors")
    tensors = {
        **peft("unet.", diffusers_spelled(example.unet)),
        **peft("text_encoder_2.", example.text_g),
    }
    settings = {METADATA_KEY: json.dumps({"unet.lora_alpha": 2.0, "unet.use_rslora": True})}
    write(folder / "peft.safetensors", tensors, settings)
    return [(folder / name).read_bytes() for name in ("kohya.safetensors", "peft.safetensors")]


def change_keys(draw: random.Random, data: bytes) -> bytes:
    """Parts of keys exchanged, settings in the metadata replaced."""
    length = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + length].decode()
    for _ in range(draw.choice((1, 1, 2, 5))):
        old = draw.choice([word for word in WORDS if word and word in header] or ["lora"])
        header = header.replace(old, draw.choice(WORDS), draw.choice((1, 1, 2, -1)))
    try:
        table = json.loads(header)
        table["__metadata__"] = {METADATA_KEY: settings(draw)} if draw.random() < 0.5 else {}
        header = json.dumps(table)
    except ValueError:
        pass  # a key was broken so far that the header is none: a case of its own
    raw = header.encode()
    return struct.pack("<Q", len(raw)) + raw + data[8 + length :]


def change_values(draw: random.Random, data: bytes) -> bytes:
    """The tensors' bytes changed: alphas and matrices of any value, including NaN."""
    length = struct.unpack("<Q", data[:8])[0]
    start, body = data[: 8 + length], bytearray(data[8 + length :])
    for _ in range(draw.choice((1, 10, 1000))):
        at = 4 * draw.randrange(len(body) // 4)
        body[at : at + 4] = struct.pack("<f", draw.choice((math.nan, math.inf, -math.inf, 0.0, 1e38)))
    return start + bytes(body)


def settings(draw: random.Random) -> str:
    fields = (f'"{draw.choice(FIELDS)}": {draw.choice(VALUES)}' for _ in range(draw.randrange(4)))
    return draw.choice(("{%s}", "{%s}", "{%s}", "[%s]", "%s")) % ", ".join(fields)


def check(lora: LoRAFile) -> None:
    """Assert complete adapters: every module's three tensors, which fit the module's weight."""
    assert lora.parts()
    for part, state in lora.parts().items():
        modules = {key.removesuffix(f".{DOWN}") for key in state if key.endswith(DOWN)}
        assert set(state) == {f"{module}.{slot}" for module in modules for slot in (DOWN, UP, ALPHA)}
        for module in modules:
            shape, down, up = SHAPES[part, module], state[f"{module}.{DOWN}"], state[f"{module}.{UP}"]
            assert (up.flatten(1).float() @ down.flatten(1).float()).numel() == math.prod(shape)
            assert tuple(down.shape[1:]) == shape[1:]
            assert math.isfinite(float(state[f"{module}.{ALPHA}"]))


def fuzz(count: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """(accepted, refused) of `count` mutated files; any other outcome is an error."""
    known = spellings(ARCHITECTURE)
    monkeypatch.setattr(lora_files, "spellings", lambda architecture: known)  # the same for every file
    originals, accepted = small_files(folder), 0
    place = folder / "mutated"
    place.mkdir()
    for number in range(count):
        draw = random.Random(number)
        how = draw.choice((mutate, change_keys, change_keys, change_values))
        for name, data in (
            ("adapter_model.safetensors", how(draw, draw.choice(originals))),
            ("adapter_config.json", settings(draw).encode()),
        ):
            (place / name).unlink(missing_ok=True)  # a file written over another is put to the disk at once
            (place / name).write_bytes(data)
        try:
            lora = lora_files.load(place, ARCHITECTURE)
        except InputError:
            continue
        except BaseException as error:
            raise AssertionError(f"mutation {number} ended in {type(error).__name__}: {error}") from error
        check(lora)
        accepted += 1
    return accepted, count - accepted


def test_three_hundred_mutations(tmp_path, monkeypatch):
    accepted, refused = fuzz(300, tmp_path, monkeypatch)
    assert accepted > 30
    assert refused > 100


@pytest.mark.fuzz
def test_fifty_thousand_mutations(tmp_path, monkeypatch):
    accepted, refused = fuzz(50_000, tmp_path, monkeypatch)
    assert accepted > 5_000
    assert refused > 20_000
