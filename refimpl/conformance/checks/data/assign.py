"""Which image goes where (N §4.1.2)."""

import math
from collections.abc import Sequence

import numpy as np

from refimpl.conformance.adapter import Size
from refimpl.conformance.check import Measured, check
from refimpl.conformance.checks import draws
from refimpl.conformance.guarded import Guarded

PAPER = "N §4.1.2"
SURVEYED = 2000  # images of a survey
MEASURES = {"log aspect": np.log, "width / height": np.asarray, "height / width": np.reciprocal}
LEAST, MOST = 640, 2048  # their sides, in pixels


def surveyed_sizes() -> list[Size]:
    """2,000 image sizes, each side uniform from 640 to 2048; the same in every run."""
    sides = np.random.default_rng(0).integers(LEAST, MOST + 1, (SURVEYED, 2))
    return [(int(width), int(height)) for width, height in sides]


def turned_differently(upright: Sequence[Size | None], turned: Sequence[Size | None]) -> int:
    """How many images' buckets are not those of the turned images, turned; of those that neither prunes."""
    return sum(a is not None and b is not None and a != b[::-1] for a, b in zip(upright, turned, strict=True))


def _log_aspect(size: Size) -> float:
    return math.log(size[0] / size[1])


@check(cites="N §4.1.2: images are assigned by their shape", unit="images", limit=0, size=draws.sizes)
def same_shape_same_bucket(peer: Guarded, size: Size) -> float:
    """An image's bucket depends on its own size, not on the images it is listed with."""
    alone = peer.assign([size])[0]
    listed = peer.assign([(512, 512), size, (300, 900)])[1]
    return float(alone != listed)


@check(cites="N §4.1.2 prints the difference of width / height", unit="% of images", kind="choice")
def nearest_aspect(peer: Guarded) -> Measured:
    """By which measure an image's bucket is the nearest of those used: width / height, height / width, or its log."""
    sizes = surveyed_sizes()
    pairs = [(size, bucket) for size, bucket in zip(sizes, peer.assign(sizes), strict=True) if bucket]
    used = np.array(sorted({bucket for _, bucket in pairs}), dtype=float)
    aspects = used[:, 0] / used[:, 1]
    image = np.array([width / height for (width, height), _ in pairs])[:, None]
    own = np.array([width / height for _, (width, height) in pairs])[:, None]
    farther = {
        name: int((np.abs(measure(own) - measure(image))[:, 0] > least + 1e-12).sum())
        for name, measure in MEASURES.items()
        for least in [np.abs(measure(aspects)[None] - measure(image)).min(1)]
    }
    best = min(farther, key=lambda name: farther[name])
    share = 100 * farther[best] / max(len(pairs), 1)
    return Measured(
        share, f"nearest in {best}" if not share else f"a nearer one is used for {share:.0f} % of images"
    )


@check(cites="N prints |aspect − aspect|, which is not symmetric", unit="% of images", kind="choice")
def symmetric(peer: Guarded) -> Measured:
    """How many images would be trained in another shape if they were turned by 90°; 0 with the log of the aspect."""
    sizes = surveyed_sizes()
    differ = turned_differently(peer.assign(sizes), peer.assign([(h, w) for w, h in sizes]))
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
