"""The same few images in each of the five layouts."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.files import encoded

SIZES = {"a": (40, 20), "b": (20, 40), "sub/c": (33, 21)}
CAPTIONS = {"a": "character:alice, red dress", "b": "blue", "sub/c": "artist:bob, blue"}
TAGS = {
    "a": {"character": ("alice",), "general": ("red dress",)},
    "b": {"general": ("blue",)},
    "sub/c": {"artist": ("bob",), "general": ("blue",)},
}
WRITTEN = {"a": "alice, red dress", "b": "blue", "sub/c": "bob, blue"}


def picture(name: str) -> bytes:
    """A PNG with a size and colours of its own."""
    width, height = SIZES[name]
    pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), "PNG")


def write_images(root: Path) -> None:
    for name in SIZES:
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(name))


def write_folder(root: Path) -> Path:
    write_images(root / "images")
    for name, caption in CAPTIONS.items():
        (root / "images" / f"{name}.txt").write_text(caption)
    return root / "images"


def write_jsonl(root: Path) -> Path:
    write_images(root)
    lines = [json.dumps({"file_name": f"{name}.png", "text": text}) for name, text in CAPTIONS.items()]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


def write_kohya(root: Path) -> Path:
    write_images(root)
    table = {f"{name}.png": {"tags": text, "train_resolution": [64, 64]} for name, text in CAPTIONS.items()}
    (root / "meta_cap.json").write_text(json.dumps(table))
    return root / "meta_cap.json"


def add_member(archive: tarfile.TarFile, name: str, data: bytes, **changes: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in changes.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))


def write_tar(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "shard.tar", "w") as archive:
        for name in reversed(SIZES):
            add_member(archive, f"{name}.png", picture(name))
            add_member(archive, f"{name}.txt", CAPTIONS[name].encode())
    return root / "shard.tar"


def write_parquet(root: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    root.mkdir(parents=True, exist_ok=True)
    image = [{"bytes": picture(name), "path": f"{name}.png"} for name in SIZES]
    table = pyarrow.table({"id": list(SIZES), "image": image, "text": list(CAPTIONS.values())})
    pyarrow.parquet.write_table(table, root / "shard.parquet", row_group_size=2)
    return root / "shard.parquet"


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "folder": write_folder,
    "jsonl": write_jsonl,
    "kohya": write_kohya,
    "tar": write_tar,
    "parquet": write_parquet,
}
