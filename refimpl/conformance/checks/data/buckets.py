"""Bucket sizes (N §4.1.2)."""

from typing import Any

from hypothesis import strategies as st

from refimpl.conformance.adapter import Size
from refimpl.conformance.check import Measured, check
from refimpl.conformance.checks import draws
from refimpl.conformance.guarded import Guarded

PAPER = "N §4.1.2"
PORTRAIT = (
    (512, 704), (512, 768), (576, 640), (448, 832), (384, 896), (384, 960), (384, 1024), (320, 1024), (256, 1024),
)  # fmt: skip
NOVELAI_SET = {*PORTRAIT, *((height, width) for width, height in PORTRAIT)}
"""The 18 sizes that N's algorithm makes of N's limits, beside which N adds 512×512."""
LIMITS: dict[str, Any] = {
    "area": draws.bucket_areas,
    "most": draws.bucket_sides,
    "least": st.sampled_from((256, 384, 512)),
    "step": draws.bucket_steps,
}


def _count(wrong: list[Size]) -> Measured:
    return Measured(len(wrong), ", ".join(f"{w}×{h}" for w, h in wrong[:4]))


@check(cites=PAPER, unit="buckets", limit=0, **LIMITS)
def within_area(peer: Guarded, area: int, most: int, least: int, step: int) -> Measured:
    """No bucket has more pixels than the limit."""
    return _count([(w, h) for w, h in peer.buckets(area, most, least, step) if w * h > area])


@check(cites=PAPER, unit="buckets", limit=0, **LIMITS)
def within_sides(peer: Guarded, area: int, most: int, least: int, step: int) -> Measured:
    """No bucket's side is outside the limits."""
    found = peer.buckets(area, most, least, step)
    return _count([(w, h) for w, h in found if min(w, h) < least or max(w, h) > most])


@check(cites=PAPER, unit="buckets", limit=0, **LIMITS)
def multiples(peer: Guarded, area: int, most: int, least: int, step: int) -> Measured:
    """Every side is a multiple of the step."""
    return _count([(w, h) for w, h in peer.buckets(area, most, least, step) if w % step or h % step])


@check(cites=PAPER, unit="buckets", limit=0, **LIMITS)
def turned(peer: Guarded, area: int, most: int, least: int, step: int) -> Measured:
    """The set is closed under turning: with every portrait size there is the landscape one."""
    found = set(peer.buckets(area, most, least, step))
    return _count([(w, h) for w, h in sorted(found) if (h, w) not in found])


@check(cites=PAPER, unit="buckets", limit=0, **LIMITS)
def distinct(peer: Guarded, area: int, most: int, least: int, step: int) -> float:
    """No size is listed twice."""
    found = peer.buckets(area, most, least, step)
    return float(len(found) - len(set(found)))


@check(cites=PAPER, unit="buckets that differ", kind="choice")
def novelai_set(peer: Guarded) -> Measured:
    """Which sets of N's limits (512·768 pixels, sides 256 to 1024, step 64) are N's 18, beside its extra 512×512."""
    found = set(peer.buckets(512 * 768, 1024, 256, 64)) - {(512, 512)}
    differ = len(found ^ NOVELAI_SET)
    return Measured(differ, f"{len(found)} buckets, {differ} other than N's" if differ else "N's 18 buckets")
