"""Illustrations of the demo data set: flat colours, gradients, shapes, patterns and landscapes, drawn from a seed."""

from collections.abc import Callable
from itertools import cycle, islice

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Drawing = tuple[Image.Image, str]  # RGB image, caption with tag classes

COLOURS: dict[str, Colour] = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "orange": (255, 128, 0),
    "grey": (128, 128, 128),
}
# Black, white and red twice as often: the demo's criteria are measured on them.
FLAT_ORDER = ("black", "white", "red", "green", "blue", "yellow", "cyan",
              "black", "white", "red", "magenta", "orange", "grey")  # fmt: skip
ASPECTS = (1.0, 0.25, 2.0, 0.67, 1.25, 0.5, 4.0, 0.8, 1.5, 0.33, 3.0)  # width / height
ASPECT_JITTER = 0.06  # of log aspect
MIN_SIDE, MAX_SIDE = 64, 256  # pixels
_SUPERSAMPLE = 4  # shapes are drawn larger and averaged down: PIL's own edges are not antialiased


def _size(rng: np.random.Generator, index: int) -> tuple[int, int]:
    """Width and height: the aspects in turn, with jitter; sides are 64 to 256 pixels."""
    aspect = ASPECTS[index % len(ASPECTS)] * float(np.exp(rng.uniform(-ASPECT_JITTER, ASPECT_JITTER)))
    aspect = float(np.clip(aspect, 0.26, 3.85))  # inside 1:4 … 4:1 after rounding, too
    longest = rng.uniform(MIN_SIDE * max(aspect, 1 / aspect), MAX_SIDE)
    width, height = longest * min(1.0, aspect), longest * min(1.0, 1 / aspect)
    return round(width), round(height)


def _two_colours(rng: np.random.Generator) -> tuple[str, str]:
    first, second = rng.choice(list(COLOURS), size=2, replace=False)
    return str(first), str(second)


def _flat(rng: np.random.Generator, index: int) -> Drawing:
    """One colour and nothing else; the caption without its class is the prompt, e.g. "completely black"."""
    name = FLAT_ORDER[index % len(FLAT_ORDER)]
    image = Image.new("RGB", _size(rng, index), COLOURS[name])
    return image, f"colour:completely {name}"


def _gradient(rng: np.random.Generator, index: int) -> Drawing:
    """A linear gradient between two colours. The caption does not say which is left: a flip keeps it true."""
    width, height = _size(rng, index)
    first, second = _two_colours(rng)
    horizontal = bool(rng.integers(2))
    way = np.linspace(0.0, 1.0, width if horizontal else height)[:, None]
    ramp = (1 - way) * np.array(COLOURS[first]) + way * np.array(COLOURS[second])
    ramp = np.rint(ramp).astype(np.uint8)
    pixels = np.broadcast_to(ramp[None] if horizontal else ramp[:, None], (height, width, 3))
    direction = "horizontal" if horizontal else "vertical"
    return Image.fromarray(
        np.ascontiguousarray(pixels)
    ), f"colour:{first}, colour:{second}, style:{direction} gradient"


def _canvas(size: tuple[int, int], background: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    large = Image.new("RGB", (size[0] * _SUPERSAMPLE, size[1] * _SUPERSAMPLE), COLOURS[background])
    return large, ImageDraw.Draw(large)


def _shrink(large: Image.Image) -> Image.Image:
    return large.reduce(_SUPERSAMPLE)


def _shape(rng: np.random.Generator, index: int) -> Drawing:
    """One circle, square, triangle, ring or star on a flat background."""
    size = _size(rng, index)
    colour, background = _two_colours(rng)
    large, draw = _canvas(size, background)
    radius = float(rng.uniform(0.3, 0.46)) * min(large.size)
    x = float(rng.uniform(radius, large.width - radius))
    y = float(rng.uniform(radius, large.height - radius))
    shape = ("circle", "square", "triangle", "ring", "star")[index % 5]
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    elif shape == "ring":
        draw.ellipse(box, outline=COLOURS[colour], width=round(radius * 0.4))
    else:
        corners = 3 if shape == "triangle" else 10
        radii = [radius, radius * (0.45 if shape == "star" else 1.0)]
        angles = [2 * np.pi * k / corners - np.pi / 2 for k in range(corners)]
        points = [
            (x + radii[k % 2] * np.cos(a), y + radii[k % 2] * np.sin(a)) for k, a in enumerate(angles)
        ]  # fmt: skip
        draw.polygon(points, fill=COLOURS[colour])
    caption = f"shape:{colour} {shape}, background:{background} background, style:drawing"
    return _shrink(large), caption


def _pattern(rng: np.random.Generator, index: int) -> Drawing:
    """Horizontal or vertical stripes, or a chequerboard, in two colours."""
    size = _size(rng, index)
    first, second = _two_colours(rng)
    pattern = ("vertical stripes", "horizontal stripes", "squares")[index % 3]
    large, draw = _canvas(size, second)
    step = round(float(rng.uniform(0.16, 0.3)) * min(large.size))
    for row, top in enumerate(range(0, large.height, step)):
        for column, left in enumerate(range(0, large.width, step)):
            parity = {"vertical stripes": column, "horizontal stripes": row, "squares": row + column}[pattern]
            if parity % 2 == 0:
                draw.rectangle((left, top, left + step - 1, top + step - 1), fill=COLOURS[first])
    return _shrink(large), f"colour:{first}, colour:{second}, shape:{pattern}, style:drawing"


def _landscape(rng: np.random.Generator, index: int) -> Drawing:
    """Sky, ground, and a sun in the sky; the three colours differ."""
    size = _size(rng, index)
    sky, ground, sun = (str(name) for name in rng.choice(list(COLOURS), size=3, replace=False))
    large, draw = _canvas(size, sky)
    horizon = float(rng.uniform(0.55, 0.75)) * large.height
    draw.rectangle((0, horizon, large.width, large.height), fill=COLOURS[ground])
    radius = float(rng.uniform(0.3, 0.45)) * min(horizon, large.width) / 1.2
    x, y = float(rng.uniform(radius, large.width - radius)), float(rng.uniform(radius, horizon - radius))
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOURS[sun])
    caption = f"subject:a {sun} sun, background:{sky} sky, background:{ground} ground, style:drawing"
    return _shrink(large), caption


# Four of every ten drawings are flat. The order spreads the kinds evenly, so any count has about the same mix.
_KINDS: dict[str, Callable[[np.random.Generator, int], Drawing]] = {
    "flat": _flat,
    "shape": _shape,
    "gradient": _gradient,
    "pattern": _pattern,
    "landscape": _landscape,
}
KIND_ORDER = ("flat", "shape", "flat", "gradient", "flat", "shape", "pattern", "flat", "shape", "landscape")


def kinds(count: int) -> list[tuple[str, int]]:
    """The (kind, number within the kind) of the first `count` drawings."""
    seen = dict.fromkeys(_KINDS, 0)
    listed = []
    for kind in islice(cycle(KIND_ORDER), count):
        listed.append((kind, seen[kind]))
        seen[kind] += 1
    return listed


def draw(kind: str, number: int, seed: int) -> Drawing:
    """Drawing `number` of a kind: an RGB image of 64 to 256 pixels a side and its caption with tag classes.

    A function of (kind, number, seed) alone, so a larger data set begins with the smaller one.
    """
    rng = np.random.default_rng([seed, list(_KINDS).index(kind), number])
    return _KINDS[kind](rng, number)
