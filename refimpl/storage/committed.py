"""Folders that are whole or absent: safetensors and JSON, committed by one rename.

A committed folder holds `<name>.safetensors` and `<name>.json` files beside a `manifest.json` that holds the
SHA-256 and the size of each. It is written under a temporary name, every file and the folder are fsynced, the
manifest is written last, and the folder is renamed to its final name. A process killed at any moment leaves
either no folder of that name or a complete one. Nothing is pickled, and no generator state is kept: data order
and every draw are functions of (seed, epoch, id), so the step number is the whole state.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from refimpl.errors import InputError
from refimpl.storage import safetensors_file
from refimpl.storage.atomic import fsync, renamed_folder
from refimpl.storage.safetensors_header import Reader

FORMAT_VERSION = 1
READER = Reader(remedy="copy it again or use another step")
MANIFEST = "manifest.json"


class Contents(NamedTuple):
    """What a checkpoint folder holds: tensors[file][key] and documents[file]."""

    tensors: dict[str, dict[str, Tensor]]
    documents: dict[str, Any]


def write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, Any]) -> None:
    """Commits a checkpoint at `folder`, which must not exist yet.

    tensors    file name (without suffix) → state dict, any shapes and dtypes
    documents  file name (without suffix) → anything JSON can hold
    Raises InputError when `folder` exists, or when the disk refuses the write (then nothing is left behind).
    """
    folder = Path(folder)
    if folder.exists():
        raise InputError(f"checkpoint folder {folder} already exists; a checkpoint is never overwritten")
    with committed_folder(folder) as temporary:
        for name, state in tensors.items():
            write_state(temporary / f"{name}.safetensors", state)
        for name, document in documents.items():
            (temporary / f"{name}.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def write_state(path: Path, state: Mapping[str, Tensor]) -> None:
    """Writes a state dict to a file in a folder that is yet to be committed, which makes the file whole or absent."""
    with path.open("wb") as file:
        safetensors_file.write_to(file, str(path), state)


def committed_folder(folder: Path) -> contextlib.AbstractContextManager[Path]:
    """`renamed_folder` with a manifest of all files in it, written last."""
    return renamed_folder(folder, _write_manifest)


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {str(path.relative_to(folder)): _fingerprint(path) for path in files}
    manifest = {"format": FORMAT_VERSION, "files": entries}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    fsync(folder / MANIFEST)


def read(folder: Path, only: set[str] | None = None) -> Contents:
    """Reads back a committed checkpoint, refusing anything that differs from its manifest.

    only  names of the files (without suffix) to read; None for all. Every file read is verified.
    Raises InputError for a folder without a manifest, a missing or changed file, or a newer format.
    """
    folder = Path(folder)
    entries = read_manifest(folder)
    contents = Contents({}, {})
    for file_name, entry in entries.items():
        path = folder / file_name
        if only is not None and path.stem not in only:
            continue
        _verify_file(folder, file_name, entry)
        if path.suffix == ".json":
            try:
                contents.documents[path.stem] = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(f"checkpoint file {path} is not valid JSON: {error}") from error
        elif path.suffix == ".safetensors":
            contents.tensors[path.stem] = safetensors_file.read(path, READER)[0]
    absent = (only or set()) - set(contents.tensors) - set(contents.documents)
    if absent:
        raise InputError(
            f"checkpoint {folder} has no {', '.join(sorted(absent))}; it holds {', '.join(entries)}"
        )
    return contents


def verify(folder: Path) -> None:
    """Checks every file of a committed folder against its manifest; InputError names the first that differs."""
    folder = Path(folder)
    for file_name, entry in read_manifest(folder).items():
        _verify_file(folder, file_name, entry)


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """File name → {sha256, size} of a committed checkpoint; InputError when `folder` is not one."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} is not a checkpoint: it has no {MANIFEST}")
    try:
        manifest = json.loads(path.read_text())
        version, files = manifest["format"], manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a checkpoint manifest") from error
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has format {version!r}; this version reads format {FORMAT_VERSION}")
    if not isinstance(files, dict):
        raise InputError(f"{path} is not a checkpoint manifest: its files are {files!r}")
    return files


def _verify_file(folder: Path, file_name: str, entry: dict[str, Any]) -> None:
    path = folder / file_name
    if not path.is_file():
        raise InputError(
            f"{folder} lacks {file_name}, which its manifest lists; copy it again or use another step"
        )
    if _fingerprint(path) != entry:
        raise InputError(
            f"{path} differs from its manifest: it is damaged; copy it again or use another step"
        )


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "size": path.stat().st_size}
