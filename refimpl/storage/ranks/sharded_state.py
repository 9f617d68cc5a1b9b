"""A state dict in one safetensors file per rank, written and read by torch.distributed.checkpoint.

    <folder>/shard-<rank + 1>-model-00001-of-00001.safetensors

A shard holds what its rank wrote of each tensor; its header says where that lies in the whole (DCP_SHARDING_INFO, as
torch's HuggingFaceStorageWriter writes it). Nothing is pickled. The shards can be read by any number of ranks,
however they share the tensors out, and each reads only the bytes of its own blocks.
"""

import contextlib
import math
import re
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from refimpl.errors import InputError
from refimpl.storage import safetensors_file
from refimpl.storage.ranks.peers import Peers
from refimpl.storage.ranks.pieces import Piece
from refimpl.storage.safetensors_file import Value
from refimpl.storage.safetensors_header import Reader
from refimpl.storage.streaming import Deferred
from refimpl.tables import parsed_json

SHARD = re.compile(r"shard-(\d{5,})-model-\d+-of-\d+\.safetensors")
SHARDING = "DCP_SHARDING_INFO"
READER = Reader(remedy="copy it again or use another step")


class Block(NamedTuple):
    """A part of a tensor in a shard, memory-mapped."""

    offsets: tuple[int, ...]
    tensor: Tensor


def rank_of(path: Path) -> int:
    """The rank that wrote a file of a folder: a shard names its own, all else is rank 0's."""
    name = SHARD.fullmatch(path.name)
    return int(name[1]) - 1 if name else 0


def write(folder: Path, pieces: Mapping[str, Piece], peers: Peers) -> None:
    """Writes the pieces of all ranks, each block once however many ranks hold it; every rank must call it.

    folder  is made if need be; the files in it are not yet on the disk
    pieces  what this rank holds; the ranks' names may differ
    Raises on every rank what it raised on one.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    writer.sync_files = False  # whoever commits the folder fsyncs all that is in it
    alone = peers.size == 1
    with _cause_raised(), _without_warnings() if alone else contextlib.nullcontext():
        save(
            dict(pieces), storage_writer=writer, planner=_planner(), process_group=peers.group, no_dist=alone
        )


def _planner() -> Any:
    """torch's planner for pieces: who writes which block is its decision, as with DTensors."""
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
    from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

    class Planner(DefaultSavePlanner):
        def create_local_plan(self) -> SavePlan:
            items = []
            for key, piece in sorted(self.state_dict.items()):
                offsets, shape = torch.Size(piece.offsets), torch.Size(piece.shape)
                data = TensorWriteData(
                    ChunkStorageMetadata(offsets, piece.local.shape),
                    TensorProperties.create_from_tensor(piece.local),
                    shape,
                )
                items.append(WriteItem(MetadataIndex(key, offsets), WriteItemType.SHARD, tensor_data=data))
            self.plan = SavePlan(items)
            return self.plan

        def lookup_object(self, index: MetadataIndex) -> Tensor:
            return self.state_dict[index.fqn].local.contiguous()

    return Planner(flatten_state_dict=False, flatten_sharded_tensors=False)


def fill(folder: Path, targets: Mapping[str, Tensor]) -> None:
    """Copies from the shards into tensors, or into this rank's blocks of DTensors; no other rank is waited for."""
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    reader = HuggingFaceStorageReader(str(folder))
    with _cause_raised(), _without_warnings():
        load(dict(targets), storage_reader=reader, planner=planner, no_dist=True)


def catalogue(folder: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor, from the shards' headers.

    Raises InputError, naming the tensor, where the shards leave a hole in one or overlap.
    """
    return {key: (shape, blocks[0].tensor.dtype) for key, (shape, blocks) in _wholes(folder).items()}


def joined(folder: Path) -> dict[str, Value]:
    """Every tensor as a whole: the mapped blocks one after the other, or a copy where they don't simply follow."""
    return {key: _joined(shape, blocks) for key, (shape, blocks) in _wholes(folder).items()}


def put_together(folder: Path) -> None:
    """Makes one file, `<folder>.safetensors`, of a folder of shards, which it then removes."""
    with folder.with_name(f"{folder.name}.safetensors").open("wb") as file:
        safetensors_file.write_to(file, str(folder), joined(folder))
    shutil.rmtree(folder)


def read(folder: Path) -> dict[str, Tensor]:
    """Every tensor as a whole, mapped where a single shard holds all of it, and joined when used where several do."""
    return {
        key: value if isinstance(value, Tensor) else _joined_when_used(value)
        for key, value in joined(folder).items()
    }


def _joined_when_used(parts: Sequence[Tensor]) -> Tensor:
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    return Deferred(shape, parts[0].dtype, lambda: torch.cat(list(parts)))


def _wholes(folder: Path) -> dict[str, tuple[tuple[int, ...], list[Block]]]:
    """The shape of every tensor, and the blocks that make it up."""
    wholes = {}
    for key, blocks in _blocks(folder).items():
        shape = _shape(blocks)
        held, needed = sum(block.tensor.numel() for block in blocks), math.prod(shape)
        if held != needed:
            raise InputError(
                f"{folder}: a part of {key} {list(shape)} is {'missing' if held < needed else 'there twice'}: its "
                "shards are not those of one save; use another step"
            )
        wholes[key] = shape, blocks
    return wholes


def _joined(shape: tuple[int, ...], blocks: list[Block]) -> Value:
    full = sorted((b for b in blocks if b.tensor.numel()), key=lambda block: block.offsets)
    if len(full) <= 1:
        return (full or blocks)[0].tensor.reshape(shape)
    if all(tuple(block.tensor.shape[1:]) == shape[1:] for block in full):
        return [block.tensor for block in full]
    whole = torch.empty(shape, dtype=full[0].tensor.dtype)
    for offsets, tensor in full:
        whole[tuple(slice(o, o + n) for o, n in zip(offsets, tensor.shape, strict=True))] = tensor
    return whole


def _shape(blocks: list[Block]) -> tuple[int, ...]:
    """The smallest shape that holds all blocks."""
    ends = [
        [o + n for o, n in zip(*pair, strict=True)] for pair in ((b.offsets, b.tensor.shape) for b in blocks)
    ]
    return tuple(map(max, zip(*ends, strict=True))) if ends[0] else ()


def _blocks(folder: Path) -> dict[str, list[Block]]:
    """What the shards hold of each tensor."""
    blocks: dict[str, list[Block]] = defaultdict(list)
    for path, tensors, offsets in _shards(folder):
        for key, tensor in tensors.items():
            begin = offsets.get(key)
            if not (
                isinstance(begin, list) and len(begin) == tensor.ndim and all(type(n) is int for n in begin)
            ):
                raise InputError(
                    f"{path}: its header does not say where its part of {key} lies; {READER.remedy}"
                )
            blocks[key].append(Block(tuple(begin), tensor))
    return dict(blocks)


def _shards(folder: Path) -> Iterator[tuple[Path, dict[str, Tensor], dict[str, Any]]]:
    for path in sorted(folder.iterdir()):
        if SHARD.fullmatch(path.name):
            tensors, metadata = safetensors_file.read(path, READER)
            try:
                table = parsed_json(metadata[SHARDING])
                yield path, tensors, {key: entry["saved_offsets"] for key, entry in table.items()}
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{path}: its header does not say where its tensors lie; {READER.remedy}"
                ) from error


@contextlib.contextmanager
def _cause_raised() -> Iterator[None]:
    """Raises what a rank raised, where torch would raise an account of all ranks with their tracebacks."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        cause, _ = error.failures[min(error.failures)]
        raise cause from error


def _without_warnings() -> Any:
    """torch warns whenever a process saves or loads by itself, which is meant here."""
    return warnings.catch_warnings(action="ignore")
