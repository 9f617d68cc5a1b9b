"""Which states are written as one file and which in pieces, and how many bytes that takes.

Rank 0 writes a state that it holds completely, as every state of a single process and of plain data parallelism is. A
state whose tensors are cut, or of which other ranks hold tensors that rank 0 does not, is written by all of them.
"""

from collections.abc import Collection, Mapping

from refimpl.storage.ranks.peers import Peers
from refimpl.storage.ranks.pieces import Piece, State, pieces_of


def layout(
    pieces: Mapping[str, Mapping[str, Piece]], peers: Peers, whole: Collection[str] = ()
) -> tuple[list[str], int]:
    """The names of the states to be written in pieces, and the bytes of all states; the same on every rank.

    pieces  state → tensor → what this rank holds of it; every rank has the same states
    whole   states to be put together into one file; while that is written their pieces are there too
    """
    firsts = peers.on_first(lambda: {name: set(state) for name, state in pieces.items()})
    cut, sizes = {}, {}
    for name, state in pieces.items():
        beyond = state.keys() - firsts[name]  # tensors that rank 0 has nothing of
        cut[name] = bool(beyond) or not all(piece.is_whole for piece in state.values())
        counted = state if peers.rank == 0 else beyond  # whoever holds a block knows the size of the whole
        sizes[name] = sum(state[key].whole_bytes for key in counted)
    answers = peers.gathered((cut, sizes))
    split = [name for name in pieces if any(flags[name] for flags, _ in answers)]
    total = {name: sum(bytes_of[name] for _, bytes_of in answers) for name in pieces}
    return split, sum(total.values()) + sum(total[name] for name in split if name in whole)


def own_pieces(tensors: Mapping[str, State], peers: Peers) -> dict[str, dict[str, Piece]]:
    """Copies, on the CPU, of what this rank will write: `committed.write` takes them in place of the states."""
    pieces = {name: pieces_of(state) for name, state in tensors.items()}
    split, _ = layout(pieces, peers)
    written = {name for name in pieces if name in split or peers.rank == 0}
    return {
        name: {key: piece.copied() for key, piece in state.items() if name in written}
        for name, state in pieces.items()
    }
