"""Mutated images: each gives an image or a named error, and none ends the process."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refimpl.commands.data.index import looked_at
from refimpl.data.images.decode import Accepted, BadImage, decode, read_size
from refimpl.data.index.data_set import index_of
from refimpl.data.index.record import IndexOptions
from tests.data.files import encoded, exif_bytes, profile_with_red_and_blue_exchanged, quadrants

SOME, MANY = 300, 20_000
LIMIT = Accepted(max_pixels=2_000_000)  # large images are refused, or the run would be a week's
MARKERS = (
    b"\xff\xd8",
    b"\xff\xda",
    b"IHDR",
    b"IDAT",
    b"eXIf",
    b"VP8X",
    b"Exif\0\0",
    b"ftyp",
    b"\0\0\0\0",
    b"\xff" * 8,
)


def seeds() -> list[bytes]:
    """Small files of every accepted format, with the features that decoders stumble over."""
    image = Image.fromarray(quadrants())
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 4), dtype=np.uint8))
    frames = [Image.new("P", (16, 8), shade) for shade in (1, 2, 3)]
    extras = {"exif": exif_bytes(6), "icc_profile": profile_with_red_and_blue_exchanged()}
    made = [
        encoded(image, "JPEG", quality=80, **extras),
        encoded(image, "JPEG", progressive=True),
        encoded(noise.convert("CMYK"), "JPEG"),
        encoded(noise, "PNG", **extras),
        encoded(image.convert("P"), "PNG", transparency=1),
        encoded(Image.fromarray(np.arange(512, dtype=np.uint16).reshape(16, 32)), "PNG"),
        encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        encoded(noise, "WEBP", lossless=True, **extras),
        encoded(noise, "WEBP", quality=50),
        encoded(
            frames[0].convert("RGB"),
            "WEBP",
            save_all=True,
            append_images=[frame.convert("RGB") for frame in frames],
        ),
        encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        encoded(image, "BMP"),
        encoded(frames[0], "BMP"),
        encoded(noise, "TIFF", compression="tiff_lzw"),
        encoded(noise.convert("RGB"), "TIFF", compression="tiff_deflate"),
        encoded(image.convert("L"), "TIFF", compression="packbits"),
        encoded(image.convert("1"), "TIFF", compression="group4"),
        encoded(noise, "AVIF", exif=exif_bytes(3)),
    ]
    return [bytes(data) for data in made]


def mutated(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """The file after one to eight mutations: bytes changed, cut or repeated, a marker or another file inserted."""
    content = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        if not content:
            break
        at = min(
            int(draw.random() ** draw.choice((1, 3)) * len(content)), len(content) - 1
        )  # headers more often
        length = draw.choice((1, 2, 4, 16, 256))
        action = draw.randrange(8)
        if action <= 2:
            content[at] = draw.randrange(256)
        elif action == 3:
            content[at : at + length] = bytes(
                draw.randrange(256) for _ in range(len(content[at : at + length]))
            )
        elif action == 4:
            content[at : at + length] = b""
        elif action == 5:
            content[at:at] = content[at : at + length]
        elif action == 6:
            content[at:at] = draw.choice(MARKERS)
        else:
            content[at:] = other[draw.randrange(len(other)) :] if draw.random() < 0.5 else b""
    return bytes(content)


def outcomes(count: int, folder: Path) -> Counter[str]:
    """The kinds of result of `count` mutated files, each sized from its header, decoded and indexed."""
    draw, files, kinds = random.Random(count), seeds(), Counter()
    path = folder / "a.png"
    for number in range(count):
        content = mutated(files[number % len(files)], draw.choice(files), draw)
        path.write_bytes(content)
        sizes = set()
        for read in (lambda: read_size(path, LIMIT), lambda: decode(path, accepted=LIMIT).size):
            bad: BadImage | None = None
            try:
                sizes.add(read())
            except BadImage as error:
                bad = error
            except BaseException:
                (folder / "found").write_bytes(content)
                raise
            assert bad is None or (bad.path == path and bad.reason)
            kinds[bad.kind if bad else "image"] += 1
        assert len(sizes) <= 1, f"file {number}: {sizes}"
        if number < SOME:
            (folder / "all").mkdir(exist_ok=True)
            (folder / "all" / f"{number}.png").write_bytes(content)
    with looked_at(str(folder / "all"), IndexOptions(accepted=LIMIT, verify=True), 1) as table:
        assert len(table) + len(index_of(table).quarantined) == min(count, SOME)
    return kinds


def test_the_files_are_images_before_they_are_mutated(tmp_path: Path) -> None:
    for number, data in enumerate(seeds()):
        (tmp_path / f"{number}").write_bytes(data)
        assert decode(tmp_path / f"{number}").mode == "RGB"


def test_some_mutated_images(tmp_path: Path) -> None:
    kinds = outcomes(SOME, tmp_path)
    assert (
        min(kinds["image"], kinds["damaged"], kinds["not an image"]) > SOME // 20
    )  # the mutations are of all sorts


@pytest.mark.fuzz
@pytest.mark.slow
def test_many_mutated_images(tmp_path: Path) -> None:
    kinds = outcomes(MANY, tmp_path)
    assert kinds.total() == 2 * MANY
