"""Inputs that someone has made to run code, to exhaust memory, to mislead a terminal, or to crash a reader.

Each builder writes into an empty folder and returns the words of a command. `CANARY` is a file in the current folder,
which the ones that try to run code would make.
"""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from refimpl.interop import diffusers_folder, single_file
from refimpl.interop.checkpoint import Checkpoint
from refimpl.storage import safetensors_file
from refimpl.text.tokenizer import tiny_tokenizer
from tests.interop.checkpoints import working

CANARY = "executed"
ESCAPES = "\x1b]0;title\x07\x1b[2J\x1b[31m\u202egnp.\x9b\x00\x08"
SHOWN = ESCAPES.replace("\x00", "")  # what a caption may hold
MILLION = 1_000_000


class Hostile(NamedTuple):
    """How an input is made, the exit code, and what is said of it (a regular expression)."""

    build: Callable[[Path], list[str]]
    code: int
    says: str


class Runs:
    """Unpickled, it makes the canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)


PICKLE = pickle.dumps(Runs(), protocol=2)


def container(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    return struct.pack("<Q", len(header)) + header + data


def inspected(content: bytes, name: str = "model.safetensors") -> Callable[[Path], list[str]]:
    """`refimpl inspect` of a file with these bytes."""

    def build(folder: Path) -> list[str]:
        (folder / name).write_bytes(content)
        return ["inspect", str(folder / name)]

    return build


def trained(toml: str | bytes) -> Callable[[Path], list[str]]:
    """`refimpl train` of a configuration."""

    def build(folder: Path) -> list[str]:
        content = toml if isinstance(toml, bytes) else toml.encode("utf-8", "surrogatepass")
        (folder / "run.toml").write_bytes(content)
        return ["train", str(folder / "run.toml")]

    return build


def torch_archive() -> bytes:
    """What torch.save writes, with a pickle that runs code."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", PICKLE)
        archive.writestr("archive/version", "3")
    return content.getvalue()


def many(entry: str, first: str = "{", last: str = "}") -> bytes:
    """A header of a million entries; %d in an entry is its number."""
    return container((first + ",".join(entry % n for n in range(MILLION)) + last).encode())


def named(name: str, metadata: dict[str, str] | None = None) -> Callable[[Path], list[str]]:
    """A whole model with one tensor more."""

    def build(folder: Path) -> list[str]:
        parts = working()
        path = folder / "model.safetensors"
        single_file.save(Checkpoint(unet=parts.unet, metadata=metadata or {}), path)
        if name:
            tensors, held = safetensors_file.read(path)
            safetensors_file.write(path, {**tensors, name: torch.zeros(1)}, held)
        return ["inspect", str(path)]

    return build


def diffusers(change: Callable[[Path], object], *words: str) -> Callable[[Path], list[str]]:
    """`refimpl inspect`, or another command, of a changed diffusers folder."""

    def build(folder: Path) -> list[str]:
        place = folder / "model"
        diffusers_folder.save(working(), place, tokenizer=tiny_tokenizer())
        change(place)
        return [word.format(place) for word in words] or ["inspect", str(place)]

    return build


def rewritten(file: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Changes a JSON file."""

    def apply(place: Path) -> None:
        table = json.loads((place / file).read_text())
        change(table)
        (place / file).write_text(json.dumps(table))

    return apply


def replaced(file: str, content: str | bytes) -> Callable[[Path], int]:
    """Replaces a file."""
    return lambda place: (place / file).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def pickled_weights(place: Path) -> None:
    """The UNet's weights as a pickle alone."""
    for path in (place / "unet").glob("*.safetensors"):
        path.unlink()
    (place / "unet" / "diffusion_pytorch_model.bin").write_bytes(PICKLE)


def remote_code(place: Path) -> None:
    """Classes of the folder's own code, where transformers would look for them."""
    code = f"import os\nos.system('touch {CANARY}')\nclass Own: pass\n"
    for part in ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "unet"):
        (place / part / "own.py").write_text(code)
    for part in ("tokenizer", "tokenizer_2"):
        rewritten(f"{part}/tokenizer_config.json", lambda t: t.update(auto_map={"AutoTokenizer": "own.Own"}))(
            place
        )
    for part in ("text_encoder", "text_encoder_2"):
        rewritten(f"{part}/config.json", lambda t: t.update(auto_map={"AutoModel": "own.Own"}))(place)


def images(change: Callable[[Path], object], *words: str) -> Callable[[Path], list[str]]:
    """`refimpl data check` of a folder of one good picture and what `change` adds."""

    def build(folder: Path) -> list[str]:
        place = folder / "images"
        place.mkdir()
        Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(place / "good.png")
        (place / "good.txt").write_text("a grey square")
        change(place)
        return [word.format(folder) for word in words] or ["data", "check", str(place), "--processes", "1"]

    return build


def bomb(place: Path) -> None:
    """A PNG of a kilobyte that says it has 10^10 pixels."""
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "png")
    data = bytearray(content.getvalue())
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (place / "bomb.png").write_bytes(bytes(data))


def lora(content: Callable[[Path], object], name: str) -> Callable[[Path], list[str]]:
    """`refimpl merge-lora` of a LoRA."""

    def build(folder: Path) -> list[str]:
        single_file.save(working(), folder / "model.safetensors")
        content(folder / name)
        return [
            "merge-lora",
            str(folder / "model.safetensors"),
            str(folder / name),
            str(folder / "out.safetensors"),
        ]

    return build


def archive(place: Path) -> None:
    """A tar of pictures whose names climb out of it, and a link to a file outside."""
    with tarfile.open(place / "shard.tar", "w") as tar:
        for name in ("../../escaped.png", "/tmp/escaped.png"):
            content = (place / "good.png").read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)


def run_folder(file: str, content: str) -> Callable[[Path], list[str]]:
    """`refimpl train --resume` of a run whose settings are these."""

    def build(folder: Path) -> list[str]:
        (folder / "run").mkdir()
        (folder / "run" / file).write_text(content)
        return ["train", "--resume", str(folder / "run")]

    return build


def special(make: Callable[[Path], object]) -> Callable[[Path], list[str]]:
    """`refimpl inspect` of what is not a regular file."""

    def build(folder: Path) -> list[str]:
        make(folder / "model.safetensors")
        return ["inspect", str(folder / "model.safetensors")]

    return build


DEEP = "[" * 100_000
HUGE = "1" + "0" * 400  # more than a float can hold
CORPUS = {
    # code
    "pickle": Hostile(inspected(PICKLE, "model.ckpt"), 2, "a pickle.* can run code"),
    "pickle under another name": Hostile(inspected(PICKLE), 2, "a pickle.* can run code"),
    "torch archive": Hostile(inspected(torch_archive(), "model.pt"), 2, "a zip archive.* can run code"),
    "torch archive under another name": Hostile(inspected(torch_archive()), 2, "a zip archive"),
    "pickled weights in a folder": Hostile(diffusers(pickled_weights), 2, "pickle"),
    "code of a folder's own": Hostile(diffusers(remote_code), 0, "predicts eps"),
    "tokenizer of a folder's own code": Hostile(
        diffusers(remote_code, "convert", "{}", "{}.copy"), 0, "predicts eps"
    ),
    "pickled LoRA": Hostile(
        lora(lambda path: path.write_bytes(PICKLE), "lora.safetensors"), 2, "a pickle.* can run code"
    ),
    # other files under a checkpoint's name
    "GGUF": Hostile(inspected(b"GGUF" + bytes(64)), 2, "a GGUF file"),
    "LFS pointer": Hostile(
        inspected(b"version https://git-lfs.github.com/spec/v1\n"), 2, "a Git LFS pointer"
    ),
    "web page": Hostile(inspected(b"<!DOCTYPE html><script>"), 2, "a web page"),
    "empty file": Hostile(inspected(b""), 2, "it has 0 bytes"),
    "a pipe without a writer": Hostile(special(os.mkfifo), 2, "not a regular file"),
    "an endless device": Hostile(special(lambda path: path.symlink_to("/dev/zero")), 2, "not a regular file"),
    "memory that can't be read": Hostile(
        special(lambda path: path.symlink_to("/proc/self/mem")), 2, "can't be read|not a whole"
    ),
    # headers
    "header of 2^63 bytes": Hostile(inspected(struct.pack("<Q", 2**63) + b"{}"), 2, "its header would be"),
    "a million names with backslashes": Hostile(inspected(many('"t%d\\\\":0')), 2, "too many for a model"),
    "a million metadata": Hostile(
        inspected(many('"t%d":""', '{"__metadata__":{', "}}")), 2, "too many for a model"
    ),
    "nested header": Hostile(inspected(container(b'{"x":' + DEEP.encode())), 2, "not a JSON table"),
    "a name with escapes": Hostile(named(ESCAPES), 2, r"\\x1b\]0;title"),
    "a name of two lines": Hostile(named("a\nerror: all is well, run rm"), 2, r"a\\nerror: all is well"),
    "a name of a megabyte": Hostile(named("n" * 2**20), 2, "n…"),
    "metadata with escapes": Hostile(named("", {ESCAPES: ESCAPES}), 0, r"\\x1b\]0;title"),
    "a malformed entry with escapes": Hostile(
        inspected(container(json.dumps({ESCAPES: {"dtype": "F32"}}).encode())), 2, r"\\x1b\]0;title"
    ),
    # settings
    "settings of a studio with escapes": Hostile(
        lambda folder: (
            trained(r'"\u001b]0;title\u0007\u202e" = 1')(folder)[:0]
            or ["studio", str(folder), "--config", str(next(folder.glob("*.toml")))]
        ),
        2,
        r"unknown key \\x1b\]0;title\\x07\\u202e",
    ),
    "TOML of nested lists": Hostile(trained(f"a = {DEEP}"), 2, "not valid TOML: it is nested too deep"),
    "TOML of nested tables": Hostile(
        trained("a = " + "{a=" * 100_000), 2, "not valid TOML: it is nested too deep"
    ),
    "TOML of a dotted key": Hostile(
        trained(".".join("a" * 2_000) + " = 1"), 2, "unknown key|nested too deep"
    ),
    "integer beyond every float": Hostile(
        trained(f"[optimizer]\nlearning_rate = {HUGE}"), 2, "learning_rate is an integer of 1329 bits"
    ),
    "integer beyond 64 bits": Hostile(
        trained(f"[train]\nsteps = {2**70}"), 2, "steps is an integer of 71 bits"
    ),
    "integer of 5000 digits": Hostile(trained(f"[train]\nsteps = {'9' * 5000}"), 2, "not valid TOML"),
    "TOML key with escapes": Hostile(
        trained(r'"\u001b]0;title\u0007\u202e" = 1'), 2, r"unknown key \\x1b\]0;title\\x07\\u202e"
    ),
    "TOML value with escapes": Hostile(
        trained('[data]\nplan = "' + r"\u001b[2J\u202e" + '"'), 2, r"\\x1b\[2J\\u202e"
    ),
    "TOML of other bytes": Hostile(trained(b"\xff\xfe\x00"), 2, "is not text"),
    "TOML of zeros": Hostile(trained(bytes(1000)), 2, "not valid TOML"),
    "TOML that can't be read": Hostile(
        lambda folder: (
            (folder / "run.toml").symlink_to("/proc/self/mem") or ["train", str(folder / "run.toml")]
        ),
        2,
        "could not read .*Input/output error",
    ),
    "a number on the command line": Hostile(
        lambda folder: ["train", "tiny", "--train.steps", str(10**400), "--train.out", str(folder / "run")],
        2,
        "train.steps is an integer of 1329 bits",
    ),
    "settings of a run, nested": Hostile(
        run_folder("config.json", DEEP), 2, "cannot be read as a run's settings"
    ),
    "settings of a run, huge": Hostile(
        run_folder("config.json", '{"train": {"steps": ' + HUGE + "}}"),
        2,
        "cannot be read as a run's settings",
    ),
    # a diffusers folder
    "nested index": Hostile(diffusers(replaced("model_index.json", DEEP)), 2, "model_index.json"),
    "class name with escapes": Hostile(
        diffusers(rewritten("model_index.json", lambda table: table.update(_class_name=ESCAPES))),
        2,
        r"\\x1b\]0",
    ),
    "nested scheduler": Hostile(
        diffusers(replaced("scheduler/scheduler_config.json", DEEP)), 2, "scheduler_config"
    ),
    "layers beyond count": Hostile(  # networks are as large as their tensors
        diffusers(rewritten("text_encoder/config.json", lambda table: table.update(num_hidden_layers=10**9))),
        0,
        "36 tensors",
    ),
    # LoRA
    "LoRA with escapes": Hostile(
        lora(
            lambda path: safetensors_file.write(path, {f"lora_unet_{ESCAPES}.alpha": torch.ones(1)}),
            "l.safetensors",
        ),
        2,
        r"\\x1b\]0",
    ),
    # data
    "decompression bomb": Hostile(images(bomb), 0, "bomb.png: more pixels than the limit"),
    "text for a picture": Hostile(
        images(replaced("fake.png", "not a picture")), 0, "fake.png: .*not an image"
    ),
    "a picture of markup": Hostile(
        images(replaced("fake.png", '<svg xmlns="http://www.w3.org/2000/svg"/>')),
        0,
        "fake.png: .*not an image",
    ),
    "caption with a NUL": Hostile(images(replaced("good.txt", ESCAPES)), 0, "a NUL at byte"),
    "caption with escapes": Hostile(images(replaced("good.txt", SHOWN)), 0, r"\\x1b\[31m\\u202egnp"),
    "file name with escapes": Hostile(
        images(lambda place: (place / "good.png").rename(place / "\x1b[2J\u202e.png")),
        0,
        r"\\x1b\[2J\\u202e.png",
    ),
    "broken parquet": Hostile(
        images(
            replaced("rows.parquet", b"PAR1" + bytes(64) + b"PAR1"), "data", "check", "{}/images/rows.parquet"
        ),
        2,
        "rows.parquet",
    ),
    "nested metadata": Hostile(
        images(replaced("metadata.jsonl", '{"file_name": ' + DEEP + "\n")),
        0,
        "metadata.jsonl: line 1: .* too deep",
    ),
    "archive that climbs out": Hostile(
        images(archive, "data", "check", "{}/images/shard.tar"), 0, "leaves the archive|symbolic link"
    ),
}
