"""Which image goes where (N §4.1.2)."""

import math

import numpy as np

from refimpl.conformance.adapter import Size
from refimpl.conformance.check import Measured, check
from refimpl.conformance.checks import draws
from refimpl.conformance.guarded import Guarded

PAPER = "N §4.1.2"
SURVEYED = 2000  # images of a survey
LEAST, MOST = 640, 2048  # their sides, in pixels


def surveyed_sizes() -> list[Size]:
    """2,000 image sizes, each side uniform from 640 to 2048; the same in every run."""
    sides = np.random.default_rng(0).integers(LEAST, MOST + 1, (SURVEYED, 2))
    return [(int(width), int(height)) for width, height in sides]


def _log_aspect(size: Size) -> float:
    return math.log(size[0] / size[1])


@check(cites="N §4.1.2: images are assigned by their shape", unit="images", limit=0, size=draws.sizes)
def same_shape_same_bucket(peer: Guarded, size: Size) -> float:
    """An image's bucket depends on its own size, not on the images it is listed with."""
    alone = peer.assign([size])[0]
    listed = peer.assign([(512, 512), size, (300, 900)])[1]
    return float(alone != listed)


@check(cites=PAPER, unit="% of images", limit=0.5)
def nearest_aspect(peer: Guarded) -> Measured:
    """An image gets a bucket whose aspect none of the used buckets beats, in aspect or in its logarithm."""
    sizes = surveyed_sizes()
    pairs = [(size, bucket) for size, bucket in zip(sizes, peer.assign(sizes), strict=True) if bucket]
    used = np.array(sorted({bucket for _, bucket in pairs}), dtype=float)
    aspects = used[:, 0] / used[:, 1]
    wrong = 0
    for (width, height), bucket in pairs:
        aspect, own = width / height, bucket[0] / bucket[1]
        linear = abs(own - aspect) <= np.abs(aspects - aspect).min() + 1e-12
        log = abs(math.log(own / aspect)) <= np.abs(np.log(aspects / aspect)).min() + 1e-12
        wrong += not (linear or log)
    share = 100 * wrong / max(len(pairs), 1)
    return Measured(share, f"{wrong} of {len(pairs)} images")


@check(cites="N prints |aspect − aspect|, which is not symmetric", unit="% of images", kind="choice")
def symmetric(peer: Guarded) -> Measured:
    """How many images would be trained in another shape if they were turned by 90°; 0 with the log of the aspect."""
    sizes = surveyed_sizes()
    upright = peer.assign(sizes)
    turned = peer.assign([(h, w) for w, h in sizes])
    differ = sum(
        a is not None and b is not None and a != b[::-1] for a, b in zip(upright, turned, strict=True)
    )
    return Measured(100 * differ / len(sizes), f"{100 * differ / len(sizes):.1f} % of {len(sizes):,} sizes")


@check(cites="N §4.1.2 prunes what is very extreme, and gives no limit", unit="sizes", kind="choice")
def pruning(peer: Guarded) -> Measured:
    """Which of 900×100 and 100×900 are pruned: an image and its transpose are equally extreme."""
    wide, tall = peer.assign([(900, 100), (100, 900)])
    text = f"{'prunes' if wide is None else 'keeps'} 900×100, {'prunes' if tall is None else 'keeps'} 100×900"
    return Measured(float((wide is None) != (tall is None)), text)


@check(cites="N §4.1.3 reports 0.033 for its data", unit="mean |log aspect error|", kind="choice")
def mean_error(peer: Guarded) -> Measured:
    """The mean aspect error of the images kept, in log aspect."""
    sizes = surveyed_sizes()
    kept = [(size, bucket) for size, bucket in zip(sizes, peer.assign(sizes), strict=True) if bucket]
    errors = [abs(_log_aspect(size) - _log_aspect(bucket)) for size, bucket in kept]
    mean = sum(errors) / max(len(errors), 1)
    return Measured(mean, f"{mean:.4f}, {len(sizes) - len(kept)} pruned")
