"""Settings of the data side (N §4.1, §4.3)."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from refimpl.checks import check_at_least, check_at_most, check_choice
from refimpl.data.bucket_sizes import PRESETS, Metric, make_buckets
from refimpl.errors import InputError

Mode = Literal["global", "paper"]
Decoder = Literal["pillow", "fast"]
Digest = Literal["stat", "sha256"]

MAX_PIXELS = 100_000_000  # width · height of an image; Pillow itself stops at 178,956,970
MAX_BAD_SHARE = (
    0.01  # of the images; above it, something is wrong with the collection rather than with an image
)
MOST_WORKERS = 1024  # so that a typing error cannot fill a machine with processes
MAX_BETA = 8.0  # far above any use; a count of millions to this power is still finite


@dataclass(frozen=True)
class BucketConfig:
    """The set of training resolutions (N §4.1.2)."""

    preset: str = ""
    """A published set of buckets: novelai_v1, novelai_v3 or sdxl. Empty generates the set from the fields below."""
    max_area: int = 1024 * 1024
    """Largest area (width · height) of a generated bucket, px²."""
    max_side: int = 2048
    """Longest side of a generated bucket, px."""
    min_side: int = 512
    """Shortest side of a generated bucket, px."""
    step: int = 64
    """Bucket sides are multiples of this many px; it must itself be a multiple of the VAE's downsampling factor."""
    extra: tuple[tuple[int, int], ...] = ()
    """Further (width, height) pairs in px, added to the generated set."""

    def __post_init__(self) -> None:
        if self.preset:
            check_choice("buckets.preset", self.preset, tuple(PRESETS))
        self.sizes()

    def sizes(self) -> list[tuple[int, int]]:
        """The buckets as (width, height)."""
        if self.preset:
            return PRESETS[self.preset]
        return make_buckets(self.max_area, self.max_side, self.min_side, self.step, self.extra)


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and how an epoch is made of them (N §4.1, §4.3)."""

    folder: str = ""
    """Training images: an index written by `refimpl data index`, a folder of images with .txt or .caption sidecars,
    or any other layout that command reads."""
    heldout: str = ""
    """Held-out images in any of the same layouts: the loss is measured on them and they are never trained on. Empty
    for none."""
    allow_outside: bool = False
    """Also read images and captions outside their data set's folder, which metadata files, index files and symbolic
    links may name."""
    demo: bool = False
    """Draw the demonstration data set when `folder` does not exist."""
    allow_missing: bool = False
    """Give images that have no caption an empty one; otherwise they end the run before it begins."""
    tag_classes: tuple[str, ...] = ("character", "artist", "copyright", "meta")
    """Tag classes: a tag written `class:name` belongs to that class, and every other tag is `general`."""
    score_class: str = "score"
    """Class of the tags that give an image's aesthetic score (`score:6.5`), read when text.vector is score."""
    default_score: float = 6.0
    """Aesthetic score of images that have no score tag."""
    aspect_metric: Metric = "log"
    """Distance between aspect ratios: log (symmetric under swapping width and height) or linear (as printed in N)."""
    max_aspect_error: float = 0.0
    """Images whose |log aspect error| exceeds this are pruned and reported; 0 for no limit."""
    plan: Mode = "global"
    """How an epoch is split over ranks: global (the ranks slice batches of one bucket) or paper (every rank plans its
    own share, N §4.1.2)."""
    horizontal_flip: bool = False
    """Mirror the image on half of the visits; the crop coordinates are mirrored too."""
    shuffle_tags: bool = False
    """Shuffle a caption's tags anew at every visit."""
    keep_first_tags: int = 0
    """Number of tags at the front of a caption that shuffling and dropout leave in place."""
    tag_dropout: tuple[str, ...] = ()
    """Entries class:probability, as in ["artist:0.1"]: the probability that each tag of that class is left out of a
    visit's caption."""
    decoder: Decoder = "pillow"
    """Image decoder: pillow, or fast (JPEG by simplejpeg and Lanczos by torch, within 2 levels of 255; needs
    simplejpeg and torch 2.13)."""
    digest: Digest = "stat"
    """How a resumed run notices that image files have changed: stat (their sizes in bytes and modification times; of
    262,144 evenly spaced images where there are more) or sha256 (all of their bytes, read at every start)."""
    workers: int = 0
    """Loader processes per rank; 0 loads in the training process."""
    worker_timeout: float = 300.0
    """Seconds to wait for a batch from the loader processes, or for an image from those of `refimpl cache`; a longer
    wait ends it with an error that names the one that is stopped (exit code 69). 0 waits without end."""
    cache: str = ""
    """Folder written by `refimpl cache`: its latents and text states are trained on instead of the images. Empty to
    train on the images."""
    verify_cache: bool = True
    """Before the first step, read the cache's shards once and compare each with its SHA-256; the ranks share the
    work."""
    cache_megabytes: int = 0
    """Memory for decoded images, in megabytes, in a process that does its own loading; for data sets of a few hundred
    images. 0 keeps none."""

    def __post_init__(self) -> None:
        check_choice("data.aspect_metric", self.aspect_metric, get_args(Metric))
        check_choice("data.plan", self.plan, get_args(Mode))
        check_at_least("data.keep_first_tags", self.keep_first_tags, 0)
        check_at_least("data.workers", self.workers, 0)
        check_at_most("data.workers", self.workers, MOST_WORKERS)
        check_choice("data.digest", self.digest, get_args(Digest))
        check_at_least("data.worker_timeout", self.worker_timeout, 0)
        check_choice("data.decoder", self.decoder, get_args(Decoder))
        check_at_least("data.cache_megabytes", self.cache_megabytes, 0)
        if self.decoder == "fast" and self.cache_megabytes:
            raise InputError(
                "data.cache_megabytes keeps images that Pillow scaled; set it to 0, or data.decoder = 'pillow'"
            )
        check_at_least("data.max_aspect_error", self.max_aspect_error, 0)
        check_at_least("data.default_score", self.default_score, 0)
        if not self.score_class:
            raise InputError("data.score_class is empty; name a class of tags, such as score")
        self.tag_dropout_rates()

    def tag_dropout_rates(self) -> dict[str, float]:
        """Class → probability. Raises InputError for an entry not written so, or a class given twice."""
        rates: dict[str, float] = {}
        for entry in self.tag_dropout:
            tag_class, _, written = entry.rpartition(":")
            try:
                rate = float(written)
            except ValueError:
                rate = math.nan
            if not tag_class or not 0 <= rate <= 1 or tag_class in rates:
                raise InputError(
                    f'data.tag_dropout {entry!r}: give class:probability once for each class, as "artist:0.1"'
                )
            rates[tag_class] = rate
        return rates

    @property
    def varies_captions(self) -> bool:
        """Whether a caption changes from visit to visit."""
        return self.shuffle_tags or any(self.tag_dropout_rates().values())


@dataclass(frozen=True)
class TagWeightConfig:
    """Loss weights from how common an image's tags are in their class (N §4.3; the formula is not from a paper).

    Tags are counted over a stage's whole data set before its first step.
    """

    enabled: bool = True
    """Weight the loss by tags; when off, every image has weight 1."""
    beta: float = 0.5
    """Exponent of a tag's factor, (mean count of its class / its count)^beta; 0 weights all tags alike."""
    least: float = 0.25
    """Lower bound of an image's weight, before the weights are normalised to mean 1."""
    most: float = 4.0
    """Upper bound of an image's weight, before the weights are normalised to mean 1."""

    def __post_init__(self) -> None:
        check_tag_weights(self.beta, self.least, self.most)


def check_tag_weights(beta: float, w_min: float, w_max: float) -> None:
    """Raises InputError unless 0 ≤ beta ≤ MAX_BETA and 0 < w_min ≤ 1 ≤ w_max; see `tags.TagCounts`."""
    if not (0 <= beta <= MAX_BETA):
        raise InputError(f"tag weights: beta = {beta} leaves 0 … {MAX_BETA:g}; 0 weighs all images alike")
    if not (0 < w_min <= 1 <= w_max < math.inf):
        raise InputError(
            f"tag weights: w_min = {w_min}, w_max = {w_max}; they must obey 0 < w_min ≤ 1 ≤ w_max"
        )
