"""Sizes of WebP files from their headers, against Pillow, which reads them whole."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from refimpl.data.images.decode import Accepted, BadImage, decode, read_size
from refimpl.data.images.webp_header import webp_size
from tests.data.files import encoded, exif_bytes

THROUGH_PILLOW = Accepted(
    animations=False
)  # it has to count the frames, so that the header alone does not do


def webp(
    width: int, height: int, lossless: bool, alpha: bool, orientation: int | None, **options: object
) -> bytes:
    image = Image.new("RGBA" if alpha else "RGB", (width, height), (9, 99, 199, 50)[: 4 if alpha else 3])
    exif = {} if orientation is None else {"exif": exif_bytes(orientation)}
    return encoded(image, "WEBP", lossless=lossless, **exif, **options)


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, *range(10)]),
)
def test_every_still_is_read_as_pillow_reads_it(
    tmp_path: Path, width: int, height: int, lossless: bool, alpha: bool, orientation: int | None
) -> None:
    data = webp(width, height, lossless, alpha, orientation)
    found = webp_size(io.BytesIO(data), len(data))
    plain = orientation is None or 1 <= orientation <= 8
    assert (found is not None) == plain
    assert found is None or found == (width, height, orientation or 1)
    path = tmp_path / "a.webp"
    path.write_bytes(data)
    assert read_size(path) == read_size(path, THROUGH_PILLOW) == decode(path).size


@given(lossless=st.booleans(), alpha=st.booleans(), turned=st.booleans(), data=st.data())
def test_mutated_stills_never_get_another_size(
    tmp_path: Path, lossless: bool, alpha: bool, turned: bool, data: st.DataObject
) -> None:
    content = bytearray(webp(40, 20, lossless, alpha, 6 if turned else None))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, min(len(content) - 1, 60)))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.webp"
    path.write_bytes(content)
    sizes = set()
    for read in (read_size, lambda path: decode(path).size):
        with contextlib.suppress(BadImage):
            sizes.add(read(path))
    assert len(sizes) <= 1


def test_what_is_for_pillow_to_judge() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    moving = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    described = webp(20, 10, True, False, None, xmp=b"<x/>")
    whole = webp(20, 10, True, False, None)
    for data in (moving, described, whole[:-1], whole[:25], b"", b"RIFF", whole.replace(b"VP8L", b"VP8Z")):
        assert webp_size(io.BytesIO(data), len(data)) is None


def test_limits_count_for_sizes_from_headers(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(webp(200, 100, True, False, None))
    with pytest.raises(BadImage, match="200x100 pixels exceed the limit of 19999"):
        read_size(path, Accepted(max_pixels=19_999))
    path.rename(tmp_path / "a.png")
    with pytest.raises(BadImage, match=r"the content is WEBP, but the suffix is \.png"):
        read_size(tmp_path / "a.png", Accepted(own_suffix=True))
    with pytest.raises(BadImage, match="not an image of an accepted format"):
        read_size(tmp_path / "a.png", Accepted(formats=("PNG",)))


def test_profiles_and_alpha_are_passed_over() -> None:
    image = Image.fromarray(np.zeros((7, 9, 4), np.uint8))
    for lossless in (False, True):
        data = encoded(image, "WEBP", lossless=lossless, icc_profile=b"x" * 131, exif=exif_bytes(3))
        assert webp_size(io.BytesIO(data), len(data)) == (9, 7, 3)
