"""JPEG through simplejpeg against Pillow."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from refimpl.data.images.decode import BadImage, decode
from refimpl.data.images.fast_jpeg import check_fast, decode_fast, upright
from refimpl.errors import InputError
from tests.data.lanczos import needs_lanczos
from tests.tolerances import JPEG_DECODER_LEVELS


def noise(width: int = 37, height: int = 23) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def with_orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def assert_same(path: Path) -> None:
    expected, found = np.asarray(decode(path)).astype(int), decode_fast(path)
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= JPEG_DECODER_LEVELS


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(37, 23), (8, 8), (64, 5), (4, 4)])
def test_plain_jpegs(tmp_path: Path, subsampling: str, progressive: bool, size: tuple[int, int]) -> None:
    path = tmp_path / "a.jpg"
    noise(*size).save(path, quality=80, subsampling=subsampling, progressive=progressive)
    assert_same(path)


@pytest.mark.parametrize("orientation", range(9))
def test_orientations(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.jpg"
    noise().save(path, exif=with_orientation(orientation))
    assert_same(path)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.jpg"
    noise().convert(mode).save(path)
    assert_same(path)


def test_profiles_and_other_formats_go_through_pillow(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise().save(tmp_path / "a.jpg", icc_profile=profile)
    noise().save(tmp_path / "b.png")
    for name in ("a.jpg", "b.png"):
        assert (decode_fast(tmp_path / name) == np.asarray(decode(tmp_path / name))).all()


@pytest.mark.parametrize("kept", [0, 2, 100, 400, -1, -40])
def test_damage_is_worded_as_pillow_words_it(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.jpg"
    noise().save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BadImage) as expected:
        decode(path)
    with pytest.raises(BadImage) as caught:
        decode_fast(path)
    assert str(caught.value) == str(expected.value)


def test_arrays_are_turned_as_exif_says() -> None:
    pixels = np.arange(12).reshape(2, 2, 3).astype(np.uint8)
    corners = {o: upright(pixels, o)[0, 0, 0] // 3 for o in range(1, 9)}
    assert corners == {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 2, 7: 3, 8: 1}


@needs_lanczos
def test_without_simplejpeg_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_fast()
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="the fast decoder needs simplejpeg: pip install"):
        check_fast()
