"""Photographs of the demo data set: crops of those bundled with the scikit-image and scikit-learn wheels."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from refimpl.errors import InputError
from refimpl.packages import install_line

ASPECTS = (1.0, 0.25, 1.5, 0.67, 4.0, 0.5, 1.25, 3.0, 0.8, 2.0, 0.33, 1.78, 0.56)  # width / height
ASPECT_JITTER = 0.06  # of log aspect, so that the images do not sit on the buckets exactly
MIN_SIDE, MAX_SIDE = 72, 400  # pixels
TRAIN_CROPS, HELDOUT_CROPS = 6, 2  # of each photograph

_CC0 = "CC0 1.0"
_CC_BY = "CC BY 2.0, https://creativecommons.org/licenses/by/2.0/ (cropped and resized)"
_PUBLIC = "public domain"
_SKIMAGE, _SKLEARN = ("skimage", "data"), ("sklearn", "datasets", "images")


@dataclass(frozen=True)
class Licence:
    """Who made one photograph, and under which terms its crops are shown."""

    name: str
    author: str
    licence: str
    source: str  # where the package says it took the photograph from


@dataclass(frozen=True)
class Photograph:
    """One bundled photograph, divided so that no held-out pixel is a training pixel.

    `split` is the pixel column that divides it; `train_left` says whether the left part is the training part.
    """

    package: tuple[str, ...]
    file: str
    licence: Licence
    split: int
    train_tags: str
    heldout_tags: str
    train_left: bool = True


def _skimage(file: str, author: str, licence: str, source: str, split: int, train: str, heldout: str):
    name = f"scikit-image: {file}"
    return Photograph(_SKIMAGE, file, Licence(name, author, licence, source), split, train, heldout)


# Authors, licences and sources as the docstrings of skimage.data and sklearn's images/README.txt give them.
# Bundled images without a stated licence (moon, motorcycle, …) are left out.
PHOTOGRAPHS = (
    _skimage("astronaut.png", "NASA", _PUBLIC, "https://flic.kr/p/r9qvLn", 360,
             "subject:an astronaut, colour:orange, style:photograph",
             "subject:a space shuttle, style:photograph"),
    _skimage("chelsea.png", "Stefan van der Walt", _CC0, "scikit-image", 350,
             "subject:a cat, colour:brown, style:photograph",
             "subject:a blurred background, colour:brown, style:photograph"),
    _skimage("coffee.png", "Rachel Michetti, Pikolo Espresso Bar", _CC0, "scikit-image", 480,
             "subject:a cup of coffee, background:wooden table, style:photograph",
             "subject:a wooden table, colour:brown, style:photograph"),
    _skimage("rocket.jpg", "SpaceX", _PUBLIC, "https://www.flickr.com/photos/spacexphotos/16511594820/", 480,
             "subject:a rocket, background:blue sky, style:photograph",
             "subject:a tower, background:blue sky, style:photograph"),
    _skimage("camera.png", "Lav Varshney", _CC0, "scikit-image", 340,
             "subject:a man with a camera, colour:grey, style:photograph",
             "subject:a field, colour:grey, style:photograph"),
    _skimage("coins.png", "Brooklyn Museum", "no known copyright restrictions",
             "https://www.brooklynmuseum.org/opencollection/archives/image/51611", 290,
             "subject:coins, colour:grey, style:photograph",
             "subject:coins, colour:grey, style:photograph"),
    _skimage("hubble_deep_field.jpg", "NASA", _PUBLIC,
             "http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/", 700,
             "subject:galaxies, background:black background, style:photograph",
             "subject:galaxies, background:black background, style:photograph"),
    _skimage("retina.jpg", "Mikael Häggström", _CC0,
             "https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg", 950,
             "subject:a retina, colour:orange, style:photograph",
             "subject:a retina, colour:orange, style:photograph"),
    _skimage("brick.png", "CC0Textures", _CC0, "https://cc0textures.com/view.php?tex=Bricks25", 352,
             "subject:a brick wall, colour:grey, style:photograph",
             "subject:a brick wall, colour:grey, style:photograph"),
    _skimage("grass.png", "linolafett", _CC0,
             "https://www.deviantart.com/linolafett/art/Grass-01-434853879", 352,
             "subject:grass, colour:grey, style:photograph",
             "subject:grass, colour:grey, style:photograph"),
    _skimage("gravel.png", "CC0Textures", _CC0, "https://cc0textures.com/view.php?tex=Gravel04", 352,
             "subject:gravel, colour:grey, style:photograph",
             "subject:gravel, colour:grey, style:photograph"),
    Photograph(_SKLEARN, "china.jpg",
               Licence("scikit-learn: china.jpg", "danielbuechele", _CC_BY,
                       "https://www.flickr.com/photos/danielbuechele/6061409035/"), 440,
               "subject:a temple, background:white sky, style:photograph",
               "subject:a tree, background:white sky, style:photograph"),
    Photograph(_SKLEARN, "flower.jpg",
               Licence("scikit-learn: flower.jpg", "vultilion", _CC_BY,
                       "https://www.flickr.com/photos/vultilion/6056698931/"), 150,
               "subject:a flower, colour:orange, background:green background, style:photograph",
               "subject:leaves, background:green background, style:photograph", train_left=False),
)  # fmt: skip


def locate(photograph: Photograph) -> Path:
    """Path of a bundled photograph; the package is located but not imported (that would take a second or more).

    Raises InputError when the package, or the file in it, is not installed.
    """
    top, *folders = photograph.package
    spec = importlib.util.find_spec(top)
    package = photograph.licence.name.partition(":")[0]
    if spec is None or spec.origin is None:
        raise InputError(
            f"{package} is not installed; the demo cuts its photographs from the ones bundled with it. "
            f"Run: {install_line(package)}"
        )
    path = Path(spec.origin).parent.joinpath(*folders, photograph.file)
    if not path.is_file():
        again = install_line(package, "--force-reinstall")
        raise InputError(f"{path} is missing from the installed package. Run: {again}")
    return path


def _crop(image: Image.Image, aspect: float, rng: np.random.Generator) -> Image.Image:
    """A random window of about this aspect (width / height), 60 to 100 % of the largest, with sides of 72 to 400."""
    aspect = float(np.clip(aspect * np.exp(rng.uniform(-ASPECT_JITTER, ASPECT_JITTER)), 0.26, 3.85))
    largest = min(image.width / aspect, float(image.height))  # height of the largest window
    smallest = MIN_SIDE / min(1.0, aspect)  # height at which the shorter side is MIN_SIDE
    height = rng.uniform(max(0.6 * largest, min(smallest, largest)), largest)
    window_w = min(image.width, max(MIN_SIDE, round(height * aspect)))
    window_h = min(image.height, max(MIN_SIDE, round(height)))
    left = int(rng.integers(0, image.width - window_w + 1))
    top = int(rng.integers(0, image.height - window_h + 1))
    window = image.crop((left, top, left + window_w, top + window_h))
    least = MIN_SIDE / min(window_w, window_h)
    scale = rng.uniform(least, max(least, min(1.0, MAX_SIDE / max(window_w, window_h))))
    size = (max(MIN_SIDE, round(window_w * scale)), max(MIN_SIDE, round(window_h * scale)))
    return window.resize(size, Image.Resampling.LANCZOS)


def _fitting(width: int, height: int) -> list[float]:
    """The aspects whose largest window in a part has at least MIN_SIDE on both sides, jitter included."""
    slack = float(np.exp(ASPECT_JITTER))
    return [
        a for a in ASPECTS if width / a >= MIN_SIDE * slack and height * a >= MIN_SIDE * slack
    ]  # fmt: skip


def photograph_crops(heldout: bool, seed: int) -> Iterator[tuple[str, Image.Image, str]]:
    """Yield (id, RGB image, caption with tag classes); the same for the same seed.

    Training and held-out crops come from disjoint parts of each photograph.
    Raises InputError when scikit-image or scikit-learn is not installed.
    """
    for number, photograph in enumerate(PHOTOGRAPHS):
        with Image.open(locate(photograph)) as file:
            whole = file.convert("RGB")
        left_part = photograph.train_left != heldout
        box = (0, photograph.split) if left_part else (photograph.split, whole.width)
        part = whole.crop((box[0], 0, box[1], whole.height))
        aspects = _fitting(part.width, part.height)
        for crop in range(HELDOUT_CROPS if heldout else TRAIN_CROPS):
            rng = np.random.default_rng([seed, number, crop, int(heldout)])
            aspect = aspects[(number * TRAIN_CROPS + crop) % len(aspects)]
            name = f"photo_{Path(photograph.file).stem}_{crop:02d}"
            tags = photograph.heldout_tags if heldout else photograph.train_tags
            yield name, _crop(part, aspect, rng), tags
