"""Token rows of prompts of any length (N §4.2; S §2.1)."""

from refimpl.conformance.check import check
from refimpl.conformance.checks import draws
from refimpl.conformance.guarded import Guarded

BOS, EOS = 49406, 49407  # of CLIP's vocabulary
ROW, OWN = 77, 75  # positions of CLIP, and of a prompt's own tokens among them
PAPER = "N §4.2"


def _own(row: list[int]) -> list[int]:
    """A row's own tokens: what lies between BOS and the first EOS."""
    return row[1 : row.index(EOS)] if EOS in row else row[1:]


@check(cites=PAPER, unit="rows", limit=0, ids=draws.token_ids)
def framed(peer: Guarded, ids: list[int]) -> float:
    """Each row has 77 positions, begins with BOS, and has an EOS after its tokens."""
    rows = [row for encoder in peer.chunks(ids) for row in encoder]
    return float(sum(len(row) != ROW or row[0] != BOS or EOS not in row for row in rows))


@check(cites=PAPER, unit="tokens", limit=0, ids=draws.token_ids)
def complete(peer: Guarded, ids: list[int]) -> float:
    """The rows' tokens, one after the other, are the prompt's: none is lost, added or moved."""
    wrong = 0
    for rows in peer.chunks(ids):
        found = [token for row in rows for token in _own(row)]
        wrong = max(wrong, abs(len(found) - len(ids)), sum(a != b for a, b in zip(found, ids, strict=False)))
    return float(wrong)


@check(cites=PAPER, unit="rows", limit=0, ids=draws.token_ids)
def fewest(peer: Guarded, ids: list[int]) -> float:
    """There are as many rows as chunks of 75 tokens, and one for the empty prompt."""
    expected = max(1, -(-len(ids) // OWN))
    return float(max(abs(len(rows) - expected) for rows in peer.chunks(ids)))


@check(cites="S §2.1: the published encoders' own tokenizers", unit="positions", limit=0, ids=draws.token_ids)
def padding(peer: Guarded, ids: list[int]) -> float:
    """CLIP-L's rows are padded with EOS, bigG's with 0."""
    wrong = 0
    for rows, pad in zip(peer.chunks(ids), (EOS, 0), strict=True):
        for row in rows:
            wrong += sum(token != pad for token in row[len(_own(row)) + 2 :])
    return float(wrong)
