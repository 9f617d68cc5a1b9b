"""States in shards: written by any number of ranks, read by any other, and what is missing from them is found."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from refimpl.errors import InputError
from refimpl.storage import committed, manifest
from refimpl.storage.background import Background
from refimpl.storage.ranks import sharded_state
from refimpl.storage.ranks.layout import own_pieces
from refimpl.storage.ranks.peers import ALONE, Peers
from refimpl.storage.ranks.pieces import pieces_of
from tests.storage.ranks import states
from tests.train.processes import run_ranks


def write_and_read(arguments: list[str]) -> None:
    """A rank's part: reads every folder there is, then writes one of its world's own, and reads that."""
    folder, peers = Path(arguments[0]), states.join_group()
    for written in sorted(folder.glob("by-*")):
        states.check_filled(written, peers)
    own = folder / f"by-{peers.size}"
    committed.write(own, states.of_rank(peers), states.DOCUMENTS, peers)
    states.check_filled(own, peers)
    check_hashed_once(own, peers)
    check_refused(folder / "refused", peers)
    check_beside(folder / f"beside-{peers.size}", peers)
    committed.write(folder / f"whole-{peers.size}", states.of_rank(peers), {}, peers, ["shared", "owned"])


def check_hashed_once(folder: Path, peers: Peers) -> None:
    """Every file is hashed by exactly one of the ranks."""
    hashed: list[str] = []
    original = manifest.fingerprint

    def counting(path: Path) -> dict[str, Any]:
        hashed.append(path.name if path.parent == folder else f"{path.parent.name}/{path.name}")
        return original(path)

    manifest.fingerprint = counting
    committed.verify(folder, peers=peers)
    manifest.fingerprint = original
    files = [name for names in peers.gathered(hashed) for name in names]
    assert sorted(files) == sorted(committed.read_manifest(folder))


def check_beside(folder: Path, peers: Peers) -> None:
    """Copies are written as they were, by a thread, while the ranks talk about other things and change the state."""
    beside, background = Peers(peers.rank, peers.size, dist.new_group(backend="gloo")), Background("test")
    held = states.of_rank(peers)
    copies = own_pieces(held, beside)
    background.start(lambda: committed.write(folder, copies, {}, beside))
    for state in held.values():
        for piece in pieces_of(state).values():
            piece.local.zero_()
        dist.all_reduce(torch.ones(()))
    background.wait()
    peers.together(lambda: None)
    states.check_filled(folder, peers)


def check_refused(folder: Path, peers: Peers) -> None:
    """What one rank's disk refuses is an error of all ranks, and leaves nothing."""
    original = os.fsync

    def failing(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if peers.rank == peers.size - 1:
        os.fsync = failing
    with pytest.raises(
        InputError, match=r"could not write .*refused: No space left on device; free space.*bytes"
    ):
        committed.write(folder, states.of_rank(peers), {}, peers)
    os.fsync = original
    peers.together(lambda: None)
    assert not list(folder.parent.glob("*refused*"))


def test_what_ranks_wrote_is_read_by_any_number_of_ranks(tmp_path: Path) -> None:
    committed.write(tmp_path / "by-1", states.expected(), states.DOCUMENTS)
    for world in (4, 3, 2):
        said = tmp_path / f"said-{world}"
        codes = run_ranks([str(tmp_path)], world, said, write_and_read)
        assert codes == [0] * world, [path.read_text() for path in sorted(said.iterdir())]
    folders = [path for kind in ("by", "whole", "beside") for path in sorted(tmp_path.glob(f"{kind}-*"))]
    assert len(folders) == 10
    for folder in folders:
        tensors = committed.read(folder).tensors
        for name, state in states.expected().items():
            assert tensors[name].keys() == state.keys()
            assert all(torch.equal(tensors[name][key], value) for key, value in state.items()), (folder, name)
            assert all(tensors[name][key].dtype == value.dtype for key, value in state.items())
    layout = sorted(path.name for path in (tmp_path / "by-4").iterdir())
    assert layout == [
        "columns", "config.json", "first.safetensors", "manifest.json", "owned", "same.safetensors", "shared",
        "state.json",
    ]  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "whole-4").iterdir())
    assert names == [
        "columns", "first.safetensors", "manifest.json", "owned.safetensors", "same.safetensors",
        "shared.safetensors",
    ]  # fmt: skip
    for path in (tmp_path / "by-4").rglob("*"):
        assert path.is_dir() or path.suffix in (".json", ".safetensors")  # nothing pickled


MATRICES = {"a": torch.arange(12.0).view(4, 3), "b": torch.ones(2, 2)}


def in_shards(folder: Path) -> Path:
    """A committed folder with one state, by two ranks."""
    (folder / "ema").mkdir(parents=True)
    states.write_shards(folder / "ema", states.halves(MATRICES))
    states.sign(folder)
    return folder


def test_a_state_is_put_together_whichever_way_it_is_cut(tmp_path: Path) -> None:
    folder = in_shards(tmp_path / "folder")
    read = committed.read(folder).tensors["ema"]
    assert all(torch.equal(read[key], value) for key, value in MATRICES.items())
    shapes = {key: ((*value.shape,), value.dtype) for key, value in MATRICES.items()}
    assert committed.catalogue(folder, ["ema"]) == {"ema": shapes}


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = in_shards(tmp_path / "folder")
    (folder / "ema" / "shard-00002-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(manifest.Damaged, match=r"folder lacks ema/shard-00002-.*, which its manifest lists"):
        committed.verify(folder)


def test_a_shard_of_another_save_is_named(tmp_path: Path) -> None:
    folder, other = in_shards(tmp_path / "folder"), tmp_path / "other"
    states.write_shards(other, states.halves({key: value + 1 for key, value in MATRICES.items()}))
    name = "shard-00001-model-00001-of-00001.safetensors"
    (other / name).rename(folder / "ema" / name.replace("00001-model", "00003-model"))
    with pytest.raises(manifest.Damaged, match=r"holds ema/shard-00003.*does not list: it mixes two saves"):
        committed.verify(folder)
    (folder / "ema" / name.replace("00001-model", "00003-model")).rename(folder / "ema" / name)
    with pytest.raises(manifest.Damaged, match=r"ema/shard-00001.* differs from its manifest"):
        committed.verify(folder)


@pytest.mark.parametrize(("change", "what"), [("hole", "missing"), ("twice", "there twice")])
def test_shards_that_do_not_make_up_a_tensor_are_named(change: str, what: str, tmp_path: Path) -> None:
    """Even where the manifest lists them so: torch's own reader would leave the hole as it found it."""
    first, second = states.halves({"a": torch.arange(12.0).view(6, 2)})
    thirds = [dict(first), dict(second), dict(second)]
    piece = second["a"]
    if change == "hole":  # rows 0 … 2, then 5
        thirds = [first, {"a": type(piece)(piece.local[2:], (5, 0), (6, 2))}]
    (tmp_path / "ema").mkdir()
    states.write_shards(tmp_path / "ema", thirds)
    states.sign(tmp_path)
    committed.verify(tmp_path)
    for read in (committed.read, lambda folder: committed.catalogue(folder, ["ema"])):
        with pytest.raises(
            InputError, match=rf"a part of a \[6, 2\] is {what}: its shards are not those of one"
        ):
            read(tmp_path)


def test_a_shard_without_its_place_is_named(tmp_path: Path) -> None:
    folder = in_shards(tmp_path / "folder")
    path = folder / "ema" / "shard-00001-model-00001-of-00001.safetensors"
    for metadata in (
        {},
        {"DCP_SHARDING_INFO": "["},
        {"DCP_SHARDING_INFO": "{}"},
        {"DCP_SHARDING_INFO": "[1]"},
    ):
        committed.safetensors_file.write(path, MATRICES, metadata)
        with pytest.raises(InputError, match=r"shard-00001.*: its header does not say where its"):
            sharded_state.catalogue(folder / "ema")


def test_a_rank_alone_writes_what_it_is_given(tmp_path: Path) -> None:
    sharded_state.write(tmp_path / "ema", pieces_of(MATRICES), ALONE)
    read = sharded_state.read(tmp_path / "ema")
    assert all(torch.equal(read[key], value) for key, value in MATRICES.items())
