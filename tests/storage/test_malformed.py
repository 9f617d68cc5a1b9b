"""Every reader of a safetensors container refuses the same files, and says the same of them."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from refimpl.data.index.builder import Gathered, Row
from refimpl.data.index.index_file import read_table, write_table
from refimpl.errors import InputError
from refimpl.interop import single_file
from refimpl.interop.diffusers_folder.weights import read_weights
from refimpl.interop.lora import files as lora_files
from refimpl.interop.run.run_folder import load_autoencoder
from refimpl.latents.vae import VAE, VAEConfig
from refimpl.storage import committed, manifest, safetensors_file
from refimpl.storage.shards import map_shard, shard_bytes
from tests.interop import checkpoints
from tests.interop.lora_examples import ARCHITECTURE, example
from tests.storage.malformed import MALFORMED

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(4), "c": torch.ones(3, dtype=torch.bfloat16)}
NAME = "model.safetensors"  # of every file here


class Caller(NamedTuple):
    """Who reads a container: how the test gets a whole file, and how it is read."""

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]


def write_index(path: Path) -> None:
    gathered = Gathered("/data")
    for number in range(5):
        tags = {"general": ("tag", f"t{number}")}
        gathered.add(Row(str(number), f"{number}.png", 9, number + 1, 3, "a caption", tags, True, None))
    table = gathered.table({})
    columns = {name: (array.dtype, array.shape, [array]) for name, array in table.arrays.items()}
    write_table(path, columns, table.facts)


def read_committed(path: Path) -> committed.Contents:
    """The file is damaged as its manifest says, so that the manifest does not give it away."""
    entry = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
    table = {"format": manifest.FORMAT_VERSION, "files": {path.name: entry}}
    (path.parent / manifest.MANIFEST).write_text(json.dumps(table))
    return committed.read(path.parent)


def write_committed(path: Path) -> None:
    committed.write(path.parent / "folder", {"model": TENSORS}, {})
    (path.parent / "folder" / path.name).rename(path)


CALLERS = {
    "container": Caller(lambda path: safetensors_file.write(path, TENSORS, {"a": "b"}), safetensors_file.read),
    "single file": Caller(lambda path: single_file.save(checkpoints.working(), path), single_file.load),
    "diffusers": Caller(
        lambda path: safetensors_file.write(path, TENSORS, {"format": "pt"}),
        lambda path: read_weights(path.parent, "model"),
    ),
    "LoRA": Caller(lambda path: lora_files.save(example(), path), lambda path: lora_files.load(path, ARCHITECTURE)),
    "autoencoder": Caller(
        lambda path: safetensors_file.write(path, VAE(VAEConfig.tiny()).state_dict()),
        lambda path: load_autoencoder(path, VAEConfig.tiny()),
    ),
    "checkpoint of a run": Caller(write_committed, read_committed),
    "shard of a cache": Caller(lambda path: path.write_bytes(shard_bytes(TENSORS, {"group": "x"})), map_shard),
    "index": Caller(write_index, read_table),
    "index, not mapped": Caller(write_index, lambda path: read_table(path, mapped=False)),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of every caller's own file, which it reads."""
    files = {}
    for name, caller in CALLERS.items():
        path = tmp_path_factory.mktemp("whole") / NAME
        caller.write(path)
        caller.read(path)
        files[name] = path.read_bytes()
    return files


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_header_is_refused_by_every_reader(
    fault: str, caller: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / NAME
    path.write_bytes(MALFORMED[fault].spoil(whole[caller]))
    with pytest.raises(InputError, match=MALFORMED[fault].says) as error:
        CALLERS[caller].read(path)
    message = str(error.value)
    assert message.startswith(f"{path} ")
    assert re.search(r"; .* again(\b|$)", message), "it says what to do"


ACCEPTED_BY_THE_PACKAGE = {
    "tensor twice", "metadata twice", "one more field", "space first", "nine sides", "empty and huge"
}  # fmt: skip


@pytest.mark.parametrize("fault", MALFORMED)
def test_the_safetensors_package_agrees(fault: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    """It refuses all that is refused here, but for what leaves open which tensor is meant, and many dimensions."""
    path = tmp_path / NAME
    path.write_bytes(MALFORMED[fault].spoil(whole["container"]))
    if fault in ACCEPTED_BY_THE_PACKAGE:
        return
    with pytest.raises((SafetensorError, OSError, UnicodeDecodeError, AttributeError)):
        load_file(path)
