"""Folders that are whole or absent: safetensors and JSON, committed by one rename.

A committed folder holds states (a state dict each) and JSON documents beside a `manifest.json` that holds the SHA-256
and the size of every file. A state that one process holds is the file `<name>.safetensors`; one that the ranks of a
job share out is the folder `<name>/`, with a file from each of them (storage/ranks/sharded_state.py). All is written
under one temporary name; each rank fsyncs and hashes what it wrote; rank 0 writes the manifest last and renames the
folder to its final name. Processes killed at any moment leave either no folder of that name or a complete one.
Nothing is pickled, and no generator state is kept: data order and every draw are functions of (seed, epoch, id), so
the step number is the whole state.
"""

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from refimpl.errors import InputError
from refimpl.storage import safetensors_file
from refimpl.storage.atomic import fsync, renamed_folder
from refimpl.storage.disk_space import check_room
from refimpl.storage.manifest import MANIFEST, Entries, fingerprint, manifest_text, read_manifest, verify
from refimpl.storage.ranks import sharded_state
from refimpl.storage.ranks.layout import layout
from refimpl.storage.ranks.peers import ALONE, Peers
from refimpl.storage.ranks.pieces import Piece, State, pieces_of
from refimpl.tables import parsed_json


class Contents(NamedTuple):
    """What a checkpoint folder holds: tensors[state][key] and documents[file]."""

    tensors: dict[str, dict[str, Tensor]]
    documents: dict[str, Any]


def write(
    folder: Path,
    tensors: Mapping[str, State],
    documents: Mapping[str, Any],
    peers: Peers = ALONE,
    whole: Collection[str] = (),
) -> None:
    """Commits a checkpoint at `folder`, which must not exist yet. Every rank calls it, with the same names.

    tensors    name → state dict, any shapes and dtypes: what this rank holds of it. Rank 0 writes one file of a state
               that it holds completely; of another, each rank writes its own pieces.
    documents  file name (without suffix) → anything JSON can hold; rank 0's are written
    whole      names of the states to be one file in any case, put together from the pieces
    Raises InputError when `folder` exists, when there is no room, or when the disk refuses the write (then nothing is
    left behind).
    """
    folder = Path(folder)
    pieces = {name: pieces_of(state) for name, state in tensors.items()}
    split, needed = layout(pieces, peers, whole)
    peers.on_first(lambda: _check_place(folder, needed))
    with committed_folder(folder, peers, needed) as temporary:
        for name in split:
            sharded_state.write(temporary / name, pieces[name], peers)
        rest = {name: state for name, state in pieces.items() if name not in split}
        apart = [name for name in split if name in whole]
        peers.on_first(lambda: _write_first(temporary, rest, documents, apart))


def write_state(path: Path, state: Mapping[str, Tensor]) -> None:
    """Writes a state dict to a file in a folder that is yet to be committed, which makes the file whole or absent."""
    with path.open("wb") as file:
        safetensors_file.write_to(file, str(path), state)


@contextlib.contextmanager
def committed_folder(folder: Path, peers: Peers = ALONE, needed: int = 0) -> Iterator[Path]:
    """`renamed_folder` with a manifest of all files in it, written last; every rank fsyncs and hashes its own files.

    What the ranks do in the folder must fail on all of them or after their last exchange there.
    """
    entries: Entries = {}
    with renamed_folder(folder, lambda path: _write_manifest(path, entries), peers, needed) as temporary:
        failure = None
        try:
            yield temporary
        except Exception as error:  # raised below, where the others hear of it
            failure = error
        for found in peers.together(lambda: _own_entries(temporary, peers.rank, failure)):
            entries |= found


def _check_place(folder: Path, needed: int) -> None:
    if folder.exists():
        raise InputError(f"checkpoint folder {folder} already exists; a checkpoint is never overwritten")
    check_room(folder, needed)


def _write_first(
    folder: Path,
    states: Mapping[str, Mapping[str, Piece]],
    documents: Mapping[str, Any],
    apart: Collection[str],
) -> None:
    """What rank 0 writes: the states that it holds, those that lie apart and are to be one file, the documents."""
    for name, state in states.items():
        write_state(folder / f"{name}.safetensors", {key: piece.local for key, piece in state.items()})
    for name in apart:
        sharded_state.put_together(folder / name)
    for name, document in documents.items():
        text = json.dumps(document, indent=1, sort_keys=True) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def _own_entries(folder: Path, rank: int, failure: Exception | None) -> Entries:
    """The fingerprints of what a rank wrote; its shards are then on the disk."""
    if failure is not None:
        raise failure
    entries = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and sharded_state.rank_of(path) == rank:
            if rank:
                fsync(path)  # rank 0 fsyncs whatever it sees, last of all
            entries[str(path.relative_to(folder))] = fingerprint(path)
    return entries


def _write_manifest(folder: Path, entries: Entries) -> None:
    for name, entry in entries.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != entry["size"]:
            raise InputError(
                f"{name} was written to {folder}, but rank 0 does not see it there; all ranks must write to one file "
                "system that they share"
            )
    (folder / MANIFEST).write_text(manifest_text(entries), encoding="utf-8")
    fsync(folder / MANIFEST)


def read(folder: Path, only: Collection[str] | None = None) -> Contents:
    """Reads back a committed checkpoint, refusing anything that differs from its manifest.

    only  names of the states and documents to read; None for all. Every file read is verified.
    Raises Damaged for a folder without a manifest and for a missing or changed file, InputError for a newer format.
    """
    folder = Path(folder)
    files = files_of(folder)
    wanted = set(files) if only is None else set(only)
    verify(folder, [file for name in wanted for file in files.get(name, ())])
    _check_held(folder, wanted)
    contents = Contents({}, {})
    for name in sorted(wanted):
        path = folder / files[name][0]
        if path.suffix == ".json":
            contents.documents[name] = read_document(folder, name)
        elif path.parent != folder:
            contents.tensors[name] = sharded_state.read(folder / name)
        elif path.suffix == ".safetensors":
            contents.tensors[name] = safetensors_file.read(path, sharded_state.READER)[0]
    return contents


def files_of(folder: Path) -> dict[str, list[str]]:
    """State or document → its files in a committed folder, by the manifest."""
    files: dict[str, list[str]] = {}
    for name in read_manifest(folder):
        path = Path(name)
        owner = path.parent.name if sharded_state.SHARD.fullmatch(path.name) else path.stem
        files.setdefault(owner, []).append(name)
    return files


def read_document(folder: Path, name: str) -> Any:
    """A JSON document of a committed folder, not verified. Raises InputError when it is not valid JSON."""
    path = folder / f"{name}.json"
    try:
        return parsed_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"checkpoint file {path} is not valid JSON: {error}") from error


def catalogue(
    folder: Path, names: Collection[str]
) -> dict[str, dict[str, tuple[tuple[int, ...], torch.dtype]]]:
    """State → tensor → shape and dtype, from the headers of the files.

    Raises InputError when a state is not there, or its shards leave a hole in a tensor.
    """
    _check_held(folder, names)
    found = {}
    for name in names:
        path = place(folder, name)
        if path.is_dir():
            found[name] = sharded_state.catalogue(path)
        else:
            state = safetensors_file.read(path, sharded_state.READER)[0]
            found[name] = {key: (tuple(value.shape), value.dtype) for key, value in state.items()}
    return found


def place(folder: Path, name: str) -> Path:
    """A state's file, or the folder of its shards."""
    path = folder / f"{name}.safetensors"
    return path if path.exists() else folder / name


def _check_held(folder: Path, names: Collection[str]) -> None:
    absent = sorted(set(names) - set(files_of(folder)))
    if absent:
        held = ", ".join(read_manifest(folder))
        raise InputError(f"checkpoint {folder} has no {', '.join(absent)}; it holds {held}")


@torch.no_grad()
def fill(folder: Path, name: str, targets: Mapping[str, Tensor]) -> None:
    """Copies a state into tensors, or into this rank's blocks of DTensors; nothing else is read, nothing verified.

    targets  any of the state's tensors, in its shapes: see `catalogue`
    """
    path = place(folder, name)
    if not targets:
        return
    if path.is_dir():
        sharded_state.fill(path, targets)
        return
    state = safetensors_file.read(path, sharded_state.READER)[0]
    for key, piece in pieces_of(targets).items():
        piece.local.copy_(piece.cut_from(state[key]))
