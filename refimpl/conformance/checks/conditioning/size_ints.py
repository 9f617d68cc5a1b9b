"""The six size numbers, as the network's embedding gets them (S §2.2, §2.3)."""

from hypothesis import strategies as st

from refimpl.conformance.adapter import Size
from refimpl.conformance.check import Measured, check
from refimpl.conformance.checks import draws
from refimpl.conformance.guarded import Guarded

S = "S §2.2, §2.3"
offsets = st.tuples(st.integers(0, 2048), st.integers(0, 2048))


@check(cites=S, unit="positions", limit=0)
def order(peer: Guarded) -> float:
    """Their order is: original height and width, crop top and left, target height and width."""
    found = peer.size_ints((512, 768), (16, 32), (640, 896))
    return float(sum(round(a) != b for a, b in zip(found, (768, 512, 16, 32, 896, 640), strict=True)))


@check(cites=S, unit="px", limit=0, original=draws.sizes, crop=offsets, target=draws.sizes)
def exact(peer: Guarded, original: Size, crop: tuple[int, int], target: Size) -> Measured:
    """They arrive as they are: no format that rounds 1217 to 1216 is on the way."""
    found = peer.size_ints(original, crop, target)
    sent = sorted([*original, *crop, *target])
    pairs = list(zip(sorted(found), sent, strict=True))
    got, was = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
    return Measured(abs(got - was), f"{was} → {got:g}" if got != was else "")


@check(cites=S, unit="px", limit=0)
def of_1217(peer: Guarded) -> Measured:
    """1217 arrives as 1217; bfloat16 has 1216 and 1224 there."""
    got = peer.size_ints((1217, 1217), (0, 0), (1024, 1024))[0]
    return Measured(abs(got - 1217), f"1217 → {got:g}")
