"""Any colour mode converted to 8-bit sRGB over a background: the pixels that the model sees (S §2.4)."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, ImageFile

PROFILES_KEPT = 16  # of a data set, most images share a few
_MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_STRAIGHT = {"La": "LA", "RGBa": "RGBA", "1": "L", "RGBX": "RGB", "YCbCr": "RGB", "HSV": "RGB"}
_GREY_SCALE = {"L;2": 255 // 3, "L;4": 255 // 15}  # Pillow scales these greys to 8 bits, but not their tRNS

Transparent = int | tuple[int, ...] | None  # the value that tRNS declares to be transparent


def to_srgb(image: ImageFile.ImageFile, background: tuple[int, int, int]) -> Image.Image:
    """An opened image's pixels as sRGB: its ICC profile is applied, transparency composited over `background`.

    16-bit grey v becomes round(v / 257), so that white stays white; of 16-bit colour Pillow keeps the upper byte,
    which is never more than one level off. A profile for RGB is applied to grey images too. One that can't be
    read, or that is otherwise for another colour mode, is ignored: the pixels are then taken to be sRGB.
    Raises ValueError for 32-bit samples, which have no defined white, and whatever Pillow raises.
    """
    transparent = _transparent_value(image)
    image.load()
    colour, alpha = _split(image, transparent)
    rgb = _through_profile(colour, image.info.get("icc_profile"))
    if alpha is None:
        return rgb
    return Image.composite(rgb, Image.new("RGB", rgb.size, background), alpha)


def _transparent_value(image: ImageFile.ImageFile) -> Transparent:
    """The tRNS value in the units of the pixels that Pillow will decode; must be read before it decodes them."""
    value = image.info.get("transparency")
    if value is None or image.mode in ("P", "PA"):
        return None
    raw_mode = image.tile[0].args if image.format == "PNG" and image.tile else None
    if raw_mode == "RGB;16B":
        return tuple(sample >> 8 for sample in value)  # Pillow keeps the upper byte
    return (
        value * _GREY_SCALE.get(raw_mode, 1)
        if isinstance(raw_mode, str) and isinstance(value, int)
        else value
    )


def _split(image: Image.Image, transparent: Transparent) -> tuple[Image.Image, Image.Image | None]:
    """Opaque colour, of mode L, RGB, CMYK or LAB, and the alpha mask, or None for an opaque image."""
    if image.mode.startswith("I;16"):
        samples = np.asarray(image).astype(np.uint32)
        grey = Image.fromarray(((samples + 128) // 257).astype(np.uint8))
        return grey, None if transparent is None else _opaque(samples != transparent)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"32-bit samples (mode {image.mode}) have no defined white; save it with 8 or 16 bits"
        )
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image = image.convert(_STRAIGHT.get(image.mode, image.mode))
    if image.mode in ("LA", "RGBA"):
        return image.convert(image.mode[:-1]), image.getchannel("A")
    if transparent is None or image.mode not in ("L", "RGB"):
        return image, None
    differs = np.asarray(image) != transparent
    return image, _opaque(differs.any(2) if image.mode == "RGB" else differs)


def _opaque(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))


def _through_profile(colour: Image.Image, profile: bytes | None) -> Image.Image:
    found = _transform(profile) if profile else None
    if found is not None:
        mode, transform = found
        if colour.mode == "L" and mode == "RGB":
            colour = colour.convert("RGB")
        if colour.mode == mode:
            return transform.apply(colour)
    if colour.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return ImageCms.buildTransform(lab, ImageCms.createProfile("sRGB"), "LAB", "RGB").apply(colour)
    return colour.convert("RGB")


@lru_cache(maxsize=PROFILES_KEPT)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform] | None:
    """The mode that a profile applies to, and the transform to sRGB; None for a profile that can't be used."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        assert isinstance(source.profile, ImageCms.core.CmsProfile)
        mode = _MODE_OF_SPACE.get(source.profile.xcolor_space.strip())
        if mode is None:
            return None
        return mode, ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
