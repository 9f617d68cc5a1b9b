"""Buckets against centre crops (N §4.1.1): how often a drawn crown is cut.

Standing figures with a crown on the head and boots on the feet, of aspects between 1:1 and 1:2.25, are learned as
centre crops of a square, and in the buckets of N's algorithm of the same area. Weights, pictures and number of steps
are equal; drawn is the square, and the bucket of 1:2.

Predicted: crowns are cut more often in centre crops, of the pictures and so of what is drawn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from refimpl.data.bucket_sizes import Bucket, make_buckets
from refimpl.data.buckets import assign
from refimpl.data.crop import IntegerSource, SizeInts, cover_and_crop, cover_size
from refimpl.data.demo.drawings import COLOURS
from refimpl.data.plan import plan_epoch
from refimpl.latents.scale_shift import ScaleShift
from refimpl.latents.welford import Welford
from refimpl.model.pipeline import Model
from refimpl.paper.computed.quantity import Floats
from refimpl.paper.trained.experiment import Found
from refimpl.paper.trained.learned import Lesson, learned
from refimpl.paper.trained.small_measures import canvas, drawn
from refimpl.paper.trained.small_model import small_model
from refimpl.paper.trained.small_training import Order, SmallRun, examples_of
from refimpl.run.visit_draws import CentreDraws

IntArray = npt.NDArray[np.int64]

MEASURE = "buckets against centre crops"
SIDE, BATCH, STEPS = 32, 8, 450
SQUARE: list[Bucket] = [(SIDE, SIDE)]
BUCKETS = make_buckets(SIDE * SIDE, 48, 16, 2)
TALL = int(assign(np.array([24]), np.array([48]), BUCKETS)[0][0])  # the bucket of 1:2
COUNT = 384
ASPECTS = 1.0, 2.25  # height / width
WIDTH = 96  # px of the figures as stored
CROWN, BOOTS = 0.15, 0.1  # of the height
CLOTHES = ("red", "blue", "green")
IMAGES = 8
WHOLE_SHARE = 0.4 * CROWN / (0.4 * CROWN + 0.5 * (1 - CROWN - BOOTS))  # of a whole crown beside the clothes

PICTURES = "share of the crown cut off the pictures"
FIGURES = "share of figures drawn with half of the crown or less"
PICTURES_CUT = "share of the crown cut off the pictures, centre crops less buckets"
DRAWN_CUT = "share of figures drawn with half of the crown or less, after centre crops less after buckets"
PREDICTED = (PICTURES_CUT, DRAWN_CUT)


@dataclass(frozen=True)
class Crops:
    """Pictures by the bucket of their visits, and the order of the visits.

    images     [N, 3, h, w] in −1 … 1, for each bucket that is visited
    captions, sizes  [N] and [N, 6], likewise
    order      for each step, the bucket by its place among these, and its pictures
    crown_cut  the mean share of the crown that is cut off
    """

    images: list[Tensor]
    captions: list[list[str]]
    sizes: list[Tensor]
    order: Order
    crown_cut: float


def of_seed(seed: int, folder: Path) -> Found:
    """The effects for one seed's pictures and networks, and the numbers that they are the differences of."""
    found: dict[str, float] = {}
    arms = {"centre crops": (SQUARE, CentreDraws(), 0), "buckets": (BUCKETS, _random(seed), TALL)}
    for name, (buckets, source, asked) in arms.items():
        run = SmallRun(seed=seed, side=SIDE, steps=STEPS, batch=BATCH)
        crops = visited(figures(COUNT, seed), buckets, source, run)
        model = small_model(run.diffusion, _statistics(crops), seed)
        sets = tuple(
            examples_of(model, images, crops.captions[number], crops.sizes[number])
            for number, images in enumerate(crops.images)
        )
        model = learned(model, Lesson(run, sets, crops.order), folder)
        found[f"{PICTURES}, {name}"] = crops.crown_cut
        found[f"{FIGURES}, {name}"] = drawn_cut(model, buckets[asked], seed)
    pictures, drawn_figures = (
        found[f"{what}, centre crops"] - found[f"{what}, buckets"] for what in (PICTURES, FIGURES)
    )
    return {MEASURE: {PICTURES_CUT: pictures, DRAWN_CUT: drawn_figures} | found}


def figures(number: int, seed: int) -> list[tuple[Image.Image, str]]:
    """Figures as they are stored, whole, and their captions."""
    rng = np.random.default_rng([seed, number])
    found = []
    for place in range(number):
        height = round(WIDTH * float(rng.uniform(*ASPECTS)))
        clothes = CLOTHES[place % len(CLOTHES)]
        picture = Image.new("RGB", (WIDTH, height), COLOURS["white"])
        pen, crown, boots = ImageDraw.Draw(picture), CROWN * height, (1 - BOOTS) * height
        pen.rectangle((0.25 * WIDTH, crown, 0.75 * WIDTH, boots), fill=COLOURS[clothes])
        pen.rectangle((0.3 * WIDTH, 0, 0.7 * WIDTH, crown), fill=COLOURS["yellow"])
        pen.rectangle((0.25 * WIDTH, boots, 0.75 * WIDTH, height), fill=COLOURS["black"])
        found.append((picture, f"king in {clothes}"))
    return found


def visited(
    whole: Sequence[tuple[Image.Image, str]], buckets: Sequence[Bucket], source: IntegerSource, run: SmallRun
) -> Crops:
    """The pictures in the bucket of each of their visits, cropped once for each of their buckets.

    source  of the crops' offsets
    """
    size = np.array([picture.size for picture, _ in whole])
    bucket_of, _ = assign(size[:, 0], size[:, 1], list(buckets))
    places: dict[int, dict[int, int]] = {}  # bucket → picture → its place among those of the bucket
    order = []
    aspects = size[:, 0] / size[:, 1], np.array([width / height for width, height in buckets])
    for bucket, items in islice(_visits(bucket_of.astype(np.int64), aspects, run), run.steps):
        found = places.setdefault(bucket, {})
        rows = torch.tensor([found.setdefault(int(item), len(found)) for item in items])
        order.append((list(places).index(bucket), rows))
    images, captions, sizes, cut = [], [], [], []
    for number, found in places.items():
        bucket = buckets[number]
        made = [cover_and_crop(whole[item][0], bucket, source) for item in found]
        pixels = np.array([np.asarray(picture, np.float32) for picture, _ in made]) / 127.5 - 1
        images.append(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())
        captions.append([whole[item][1] for item in found])
        sizes.append(torch.tensor([ints for _, ints in made]))
        cut += [crown_cut(ints) for _, ints in made]
    return Crops(images, captions, sizes, order, sum(cut) / len(cut))


def crown_cut(ints: SizeInts) -> float:
    """The share of a picture's crown that its crop has cut off."""
    bucket = ints.target_width, ints.target_height
    _, height = cover_size(ints.original_width, ints.original_height, bucket)
    return min(1.0, ints.crop_top / (CROWN * height))


def drawn_cut(model: Model, size: Bucket, seed: int) -> float:
    """The share of figures drawn with half of their crown or less, by its area beside that of the clothes."""
    width, height = size
    settings = canvas(width, height, seed, IMAGES)
    shares = [crown_share(drawn(model, f"king in {clothes}", settings), clothes) for clothes in CLOTHES]
    return float((torch.cat(shares) <= WHOLE_SHARE / 2).double().mean())


def crown_share(images: Tensor, clothes: str) -> Tensor:
    """The crown's share of the pixels of crown and clothes, of images [B, 3, H, W] in 0 … 1 → [B]; 0 of neither."""
    names = ("yellow", clothes, "white", "black")
    colours = torch.tensor([COLOURS[name] for name in names], dtype=images.dtype) / 255
    nearest = torch.cdist(images.movedim(1, -1).flatten(1, 2), colours[None]).argmin(-1)
    crown, body = ((nearest == number).sum(1).double() for number in (0, 1))
    return crown / (crown + body).clamp(min=1)


def _visits(
    bucket_of: IntArray, aspects: tuple[Floats, Floats], run: SmallRun
) -> Iterator[tuple[int, IntArray]]:
    """The batches of epoch after epoch, each of one bucket.

    aspects  width / height of the pictures and of the buckets
    """
    for epoch in count():
        plan = plan_epoch(
            bucket_of, run.batch, run.seed, epoch, aspects=aspects[0], bucket_aspects=aspects[1]
        )
        yield from plan.batches()


def _statistics(crops: Crops) -> ScaleShift:
    """The scale-and-shift of pictures of several shapes."""
    welford = Welford(3)
    for images in crops.images:
        welford.update(images)
    return ScaleShift.from_welford(welford)


def _random(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, COUNT])
