"""States that ranks share out in every way that training does, and what each rank writes and reads of them."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from refimpl.storage import committed
from refimpl.storage.manifest import MANIFEST, manifest_text
from refimpl.storage.ranks import sharded_state
from refimpl.storage.ranks.peers import ALONE, Peers
from refimpl.storage.ranks.pieces import Piece, piece_of

SHAPES = {
    "uneven": (5, 3),
    "fewer rows than ranks": (2, 4),
    "vector": (7,),
    "one": (1,),
    "empty": (0, 3),
    "lora.lora_down.weight": (2, 16),
    "conv": (4, 3, 2, 2),
}
DOCUMENTS = {"config": {}, "state": {"step": 2}}


def whole_state(seed: int = 0) -> dict[str, Tensor]:
    """Every tensor of the shared state, and a scalar."""
    draw = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
    state["conv"] = state["conv"].to(memory_format=torch.channels_last)
    return state | {"step": torch.tensor(3.0 + seed), "half": state["vector"].bfloat16()}


def join_group() -> Peers:
    """This process among those that tests.train.processes.run_ranks started."""
    dist.init_process_group("gloo")
    return Peers(dist.get_rank(), dist.get_world_size())


def shared_out(state: dict[str, Tensor], dimension: int = 0) -> dict[str, Tensor]:
    """The state as DTensors cut along a dimension; scalars are plain, and the same on all ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {
        key: distribute_tensor(value, mesh, [Shard(min(dimension, value.ndim - 1))]) if value.ndim else value
        for key, value in state.items()
    }


def owned(state: dict[str, Tensor], peers: Peers) -> dict[str, Tensor]:
    """Every world-th tensor of the state, whole: as ZeRO-1 keeps moments. A rank may have none."""
    keys = sorted(state)[peers.rank :: peers.size]
    return {key: state[key] for key in keys}


def of_rank(peers: Peers) -> dict[str, dict[str, Tensor]]:
    """What a rank holds of a checkpoint with a state of each kind."""
    return {
        "shared": shared_out(whole_state(0)),
        "columns": shared_out(whole_state(1), 1),
        "owned": owned(whole_state(2), peers),
        "same": whole_state(3),
        "first": whole_state(4) if peers.rank == 0 else {},
    }


def expected() -> dict[str, dict[str, Tensor]]:
    """What all ranks together hold."""
    names = ("shared", "columns", "owned", "same", "first")
    return {name: whole_state(seed) for seed, name in enumerate(names)}


def check_filled(folder: Path, peers: Peers) -> None:
    """Reads what this rank holds, of every state, in place of zeros, and compares it bit for bit."""
    for name, state in of_rank(peers).items():
        targets = {key: torch.zeros_like(value) for key, value in state.items()}
        committed.fill(folder, name, targets)
        for key, value in targets.items():
            pair = [piece_of(tensor).local for tensor in (value, state[key])]
            assert torch.equal(*pair), f"{folder} {name} {key} on rank {peers.rank} of {peers.size}"


def write_shards(folder: Path, states: list[dict[str, Piece]]) -> None:
    """Shards as so many ranks write them, by this process alone."""
    for rank, pieces in reversed(list(enumerate(states))):
        sharded_state.write(folder, pieces, ALONE)
        name = "shard-{:05d}-model-00001-of-00001.safetensors"
        os.rename(folder / name.format(1), folder / name.format(rank + 1))


def halves(state: dict[str, Tensor]) -> list[dict[str, Piece]]:
    """What two ranks hold of a state that is cut along its first dimension; the first has what can't be cut."""
    ranks: list[dict[str, Piece]] = [{}, {}]
    for key, value in state.items():
        blocks, first = (value.chunk(2) if value.ndim else (value,)), 0
        for pieces, block in zip(ranks, blocks, strict=False):
            pieces[key] = Piece(block, (first, *[0] * (value.ndim - 1))[: value.ndim], tuple(value.shape))
            first += len(block) if value.ndim else 0
    return ranks


def sign(folder: Path) -> None:
    """Gives a folder a manifest of what it now holds."""
    (folder / MANIFEST).unlink(missing_ok=True)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {str(path.relative_to(folder)): committed.fingerprint(path) for path in files}
    (folder / MANIFEST).write_text(manifest_text(entries))
