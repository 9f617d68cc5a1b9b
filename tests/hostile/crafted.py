"""Inputs that are nearly right: one number, one name or one kind of file is not what a reader may count on."""

import io
import json
import os
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from refimpl.interop import single_file
from refimpl.storage import safetensors_file
from tests.hostile.corpus import (
    DEEP,
    ESCAPES,
    PICKLE,
    Hostile,
    container,
    diffusers,
    images,
    inspected,
    lora,
    replaced,
    rewritten,
    run_folder,
)
from tests.interop.checkpoints import working

BIDI = "\u2066weight\u2069\u202e"
LORA = "lora_unet_input_blocks_3_1_proj_in"
ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{now}: &{now} [{','.join(['*' + before] * 9)}]\n"
    for before, now in zip("abcdefgh", "bcdefghi", strict=True)
)


MERGES = "a: &a {k: 1}\n" + "".join(
    f"{now}: &{now} {{<<: [{','.join(['*' + before] * 9)}]}}\n"
    for before, now in zip("abcdefgh", "bcdefghi", strict=True)
)


def header(**entries: Any) -> bytes:
    """The header of a safetensors file."""
    return json.dumps(entries).encode()


def entry(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    """A tensor's entry."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def sidecar(text: str | bytes) -> Callable[[Path], list[str]]:
    """`refimpl inspect` of a model beside which lies this .yaml."""

    def build(folder: Path) -> list[str]:
        single_file.save(working(), folder / "model.safetensors", dtype=torch.float16)
        tensors = safetensors_file.read(folder / "model.safetensors")[0]
        safetensors_file.write(folder / "model.safetensors", tensors)
        (folder / "model.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return ["inspect", str(folder / "model.safetensors")]

    return build


def merged(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], list[str]]:
    """`refimpl merge-lora` of a LoRA of one layer, changed."""

    def write(path: Path) -> None:
        tensors = {
            f"{LORA}.lora_down.weight": torch.ones(2, 64), f"{LORA}.lora_up.weight": torch.ones(64, 2),
            f"{LORA}.alpha": torch.tensor(1.0),
        }  # fmt: skip
        change(tensors)
        safetensors_file.write(path, tensors)

    return lora(write, "lora.safetensors")


def altered(change: Callable[[dict[str, torch.Tensor]], object], *words: str) -> Callable[[Path], list[str]]:
    """`refimpl inspect`, or another command, of a whole model whose tensors are changed."""

    def build(folder: Path) -> list[str]:
        path = folder / "model.safetensors"
        single_file.save(working(), path)
        tensors, metadata = safetensors_file.read(path)
        tensors = {name: value.clone() for name, value in tensors.items()}
        change(tensors)
        safetensors_file.write(path, tensors, metadata)
        return [word.format(folder) for word in words] or ["inspect", str(path)]

    return build


def polyglot(folder: Path) -> list[str]:
    """A zip archive after a safetensors file: some readers look at the end first."""
    content = io.BytesIO(container(b"{}"))
    content.seek(0, io.SEEK_END)
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr("archive/data.pkl", PICKLE)
    return inspected(content.getvalue())(folder)


def odd_zip(folder: Path) -> list[str]:
    """A zip whose names climb out and whose comment holds escapes, as a data set's shard."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("../../escaped.png", b"x")
        archive.comment = ESCAPES.encode("utf-8", "replace")
    place = folder / "images"
    place.mkdir()
    (place / "shard.tar").write_bytes(content.getvalue())
    return ["data", "check", str(place / "shard.tar")]


def picture_link(target: str) -> Callable[[Path], object]:
    """A picture that is a link."""
    return lambda place: (place / "link.png").symlink_to(target)


def a_socket(place: Path) -> None:
    """A socket under a picture's name."""
    here = os.getcwd()
    os.chdir(place)  # its path may not be long
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("socket.png")
    finally:
        os.chdir(here)


def sparse(place: Path) -> None:
    """A caption of a terabyte, which takes no room."""
    with (place / "good.txt").open("wb") as file:
        file.truncate(2**40)


def row(name: Any) -> Callable[[Path], object]:
    """metadata.jsonl with one row for this file."""
    return replaced("metadata.jsonl", json.dumps({"file_name": name, "text": "x"}) + "\n")


CRAFTED = {
    # headers
    "fewer bytes than its tensors": Hostile(
        inspected(container(header(x=entry([9], [0, 36])), bytes(35))), 2, "truncated"
    ),
    "tensors that overlap": Hostile(
        inspected(container(header(x=entry([2], [0, 8]), y=entry([2], [4, 12])), bytes(12))),
        2,
        "overlap|not contiguous|begin",
    ),
    "a tensor before the first byte": Hostile(inspected(container(header(x=entry([1], [-4, 0])))), 2, "x"),
    "a hole between tensors": Hostile(
        inspected(container(header(x=entry([1], [0, 4]), y=entry([1], [8, 12])), bytes(12))), 2, "y"
    ),
    "bytes of no tensor": Hostile(inspected(container(header(x=entry([1], [0, 4])), bytes(8))), 2, "byte"),
    "a size beyond 64 bits": Hostile(inspected(container(header(x=entry([2**40, 2**40], [0, 0])))), 2, "x"),
    "no size but an infinite one": Hostile(inspected(container(header(x=entry([0, 2**70], [0, 0])))), 2, "x"),
    "a negative size": Hostile(inspected(container(header(x=entry([-1, -4], [0, 16])), bytes(16))), 2, "x"),
    "a size that is true": Hostile(inspected(container(header(x=entry([True], [0, 4])), bytes(4))), 2, "x"),
    "a size that is no number": Hostile(
        inspected(container(b'{"x":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4))),
        2,
        "x|NaN",
    ),
    "offsets that are fractions": Hostile(
        inspected(container(header(x=entry([1], [0.0, 4.0])), bytes(4))), 2, "0.0 is not a whole number"
    ),
    "a hundred thousand dimensions": Hostile(
        inspected(container(header(x=entry([1] * 100_000, [0, 4])), bytes(4))), 2, "dimensions|x"
    ),
    "a dtype of no bytes": Hostile(
        inspected(container(header(x=entry([4], [0, 4], "F8_E9M9")), bytes(4))), 2, "F8_E9M9"
    ),
    "a dtype that is a table": Hostile(
        inspected(container(header(x=entry([4], [0, 4], {})), bytes(4))), 2, "x"
    ),
    "one name twice": Hostile(
        inspected(container(b'{"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"x":1}')), 2, "x"
    ),
    "metadata that are no text": Hostile(inspected(container(b'{"__metadata__":{"a":[1]}}')), 2, "metadata"),
    "bytes that are no text": Hostile(inspected(container(b'{"\xff\xfe":0}')), 2, "not"),
    "a header of nothing": Hostile(inspected(struct.pack("<Q", 0)), 2, "not"),
    "a zip archive behind": Hostile(polyglot, 2, "byte"),
    "a name that reads backwards": Hostile(
        inspected(container(header(**{BIDI: entry([1], [0, 5])}), bytes(5))),
        2,
        r"\\u2066weight\\u2069\\u202e",
    ),
    # weights
    "weights that are whole numbers": Hostile(
        altered(lambda t: t.update({"model.diffusion_model.out.2.bias": torch.zeros(4, dtype=torch.int64)})),
        2,
        "out.2.bias",
    ),
    "weights in another shape": Hostile(
        altered(lambda t: t.update({"model.diffusion_model.out.2.bias": torch.zeros(2, 2)})), 2, "out.2.bias"
    ),
    # LoRA
    "LoRA of rank 0": Hostile(
        merged(
            lambda t: t.update(
                {f"{LORA}.lora_down.weight": torch.ones(0, 64), f"{LORA}.lora_up.weight": torch.ones(64, 0)}
            )
        ),
        2,
        LORA,
    ),
    "LoRA whose halves differ": Hostile(
        merged(lambda t: t.update({f"{LORA}.lora_up.weight": torch.ones(64, 3)})), 2, LORA
    ),
    "LoRA of an alpha that is no number": Hostile(
        merged(lambda t: t.update({f"{LORA}.alpha": torch.tensor(torch.nan)})), 2, "alpha"
    ),
    "LoRA of an alpha of many numbers": Hostile(
        merged(lambda t: t.update({f"{LORA}.alpha": torch.ones(7)})), 2, "alpha"
    ),
    "LoRA of values that are no numbers": Hostile(
        merged(lambda t: t.update({f"{LORA}.lora_up.weight": torch.full((64, 2), torch.nan)})),
        2,
        "finite|NaN",
    ),
    "LoRA of a layer that is not there": Hostile(
        lora(
            lambda path: safetensors_file.write(
                path,
                {
                    "lora_unet_nowhere.lora_down.weight": torch.ones(1, 4),
                    "lora_unet_nowhere.lora_up.weight": torch.ones(4, 1),
                },
            ),
            "lora.safetensors",
        ),
        2,
        "nowhere",
    ),
    "LoRA of nothing": Hostile(
        lora(lambda path: safetensors_file.write(path, {}), "lora.safetensors"), 2, "lora"
    ),
    # side-cars
    "yaml of a billion aliases": Hostile(sidecar(ALIASES), 0, "predicts eps"),
    "yaml of a billion merges": Hostile(sidecar(MERGES), 0, "predicts eps"),
    "yaml of an object": Hostile(
        sidecar("!!python/object/apply:os.system ['touch executed']\n"), 2, "not YAML"
    ),
    "yaml that nests": Hostile(sidecar("{model: " * 10_000), 2, "nested too deep|not YAML"),
    "yaml of other bytes": Hostile(sidecar(b"\xff\xfe\x00\x80model:"), 2, "utf-8"),
    # a diffusers folder
    "shards outside the folder": Hostile(
        diffusers(
            lambda place: (
                (place / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
                (place / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(
                    json.dumps({"weight_map": {"x": "/etc/passwd"}})
                ),
            )
        ),
        2,
        "passwd",
    ),
    "settings that are a list": Hostile(diffusers(replaced("unet/config.json", "[]")), 2, "config.json"),
    "a schedule of no steps": Hostile(
        diffusers(rewritten("scheduler/scheduler_config.json", lambda t: t.update(num_train_timesteps=-1))),
        2,
        "num_train_timesteps|scheduler_config",
    ),
    "a width of no number": Hostile(
        diffusers(replaced("unet/config.json", '{"block_out_channels": [NaN, Infinity]}')), 2, "config.json"
    ),
    # data
    "a picture that is a pipe": Hostile(
        images(lambda place: os.mkfifo(place / "pipe.png")), 0, "pipe.png|1 image"
    ),
    "a picture that is a socket": Hostile(images(a_socket), 0, "socket.png|1 image"),
    "a picture without end": Hostile(images(picture_link("/dev/zero")), 0, "link.png|1 image"),
    "a link to itself": Hostile(images(picture_link("link.png")), 0, "link.png|1 image"),
    "a caption that is a pipe": Hostile(
        images(lambda place: ((place / "good.txt").unlink(), os.mkfifo(place / "good.txt"))),
        0,
        "good.txt|good",
    ),
    "a caption without end": Hostile(
        images(lambda place: ((place / "good.txt").unlink(), (place / "good.txt").symlink_to("/dev/zero"))),
        0,
        "good.txt|good",
    ),
    "a caption of a terabyte": Hostile(images(sparse), 0, "good"),
    "a row of the system's files": Hostile(images(row("/etc/passwd")), 0, "passwd"),
    "a row that climbs out": Hostile(images(row("../../../etc/passwd")), 0, "passwd"),
    "a row with a NUL": Hostile(images(row("a\0b.png")), 0, "metadata.jsonl|a\\\\x00b"),
    "a row of no name": Hostile(images(row(12)), 0, "metadata.jsonl"),
    "a folder that is a picture": Hostile(
        images(lambda place: (place / "folder.png").mkdir()), 0, "good|1 image"
    ),
    "an odd zip for a tar": Hostile(odd_zip, 2, "shard.tar"),
    # runs
    "settings that are a number": Hostile(run_folder("config.json", "1"), 2, "settings"),
    "settings that are a deep list": Hostile(
        run_folder("config.json", '{"train": ' + DEEP + "}"), 2, "settings"
    ),
}
