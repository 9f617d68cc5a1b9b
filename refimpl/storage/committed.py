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
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from refimpl.errors import InputError

FORMAT_VERSION = 1
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
        raise InputError(f"checkpoint folder {folder} exists already; a checkpoint is never overwritten")
    with committed_folder(folder) as temporary:
        for name, state in tensors.items():
            contiguous = {key: value.detach().to("cpu").contiguous() for key, value in state.items()}
            save_file(contiguous, str(temporary / f"{name}.safetensors"))
        for name, document in documents.items():
            (temporary / f"{name}.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def committed_folder(folder: Path) -> contextlib.AbstractContextManager[Path]:
    """`renamed_folder` with a manifest of all files in it, written last."""
    return renamed_folder(folder, _write_manifest)


@contextlib.contextmanager
def renamed_folder(folder: Path, last: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yields a temporary folder; on a clean exit it becomes `folder` in one rename, else it is removed.

    last  called with the temporary folder when all in it is safely on the disk
    Raises InputError when the disk refuses the write.
    """
    temporary = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for path in sorted(temporary.rglob("*")):  # folders too: their entries are what names the files
            _fsync(path)
        if last is not None:
            last(temporary)
        _fsync(temporary)
        os.rename(temporary, folder)
        _fsync(folder.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"could not write {folder}: {reason}; free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {str(path.relative_to(folder)): _fingerprint(path) for path in files}
    manifest = {"format": FORMAT_VERSION, "files": entries}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    _fsync(folder / MANIFEST)


def read(folder: Path, only: set[str] | None = None) -> Contents:
    """Reads a committed checkpoint back, refusing anything that differs from its manifest.

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
            try:
                contents.tensors[path.stem] = load_file(str(path))
            except SafetensorError as error:
                raise InputError(f"checkpoint file {path} is not valid safetensors: {error}") from error
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


def replace_text(path: Path, text: str) -> None:
    """Writes a text file that is at every moment the old one or the new one, whole.

    Raises InputError when the disk refuses it; the old file then stays.
    """
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yields a name to write to; on a clean exit that file becomes `path` in one rename, else it is removed.

    Raises InputError when the disk refuses the write; the old file then stays.
    """
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        raise InputError(
            f"could not write {path}: {error.strerror}; free space or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone, or the name be too long for it
            temporary.unlink(missing_ok=True)


def load_state(module: torch.nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copies `state` into `module`; every missing, extra and misshapen tensor is listed in one InputError."""
    check_state({key: tuple(value.shape) for key, value in module.state_dict().items()}, state, source)
    module.load_state_dict(dict(state), strict=True)


def check_state(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], source: str) -> None:
    """Compares names and shapes with what a module expects; InputError lists every difference."""
    problems = [f"missing   {key} {list(expected[key])}" for key in expected if key not in state]
    problems += [f"extra     {key} {list(state[key].shape)}" for key in state if key not in expected]
    problems += [
        f"misshapen {key}: file has {list(state[key].shape)}, the model needs {list(shape)}"
        for key, shape in expected.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    problems += [
        f"integers  {key}: file has {state[key].dtype}, weights are floating-point numbers"
        for key in expected
        if key in state and not state[key].is_floating_point()
    ]
    if problems:
        listing = "\n  ".join(problems)
        raise InputError(
            f"{source} does not fit this model; {len(problems)} of its tensors differ:\n  {listing}\n"
            "Use the configuration the checkpoint was written with, or another checkpoint."
        )


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


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
