"""Image files and colour profiles written byte by byte, for what Pillow can't write."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(
    path: Path,
    width: int,
    height: int,
    depth: int,
    colour_type: int,
    rows: bytes,
    *before: bytes,
    after: bytes = b"",
) -> Path:
    """A PNG with one IDAT; `rows` includes the filter bytes; further chunks go before and after it."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + pixels + after + png_chunk(b"IEND", b"")
    )
    return path


def exif_bytes(orientation: int) -> bytes:
    """A TIFF header with the orientation tag, as in EXIF chunks."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def profile_with_red_and_blue_exchanged() -> bytes:
    """sRGB with red and blue swapped: a pixel (r, g, b) in it is (b, g, r) in sRGB."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return srgb.replace(b"rXYZ", b"****", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"****", b"bXYZ", 1)


def _profile(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    size = 128 + len(table) + len(body)
    date = struct.pack(">6H", 2024, 1, 1, 0, 0, 0)
    white = struct.pack(">3i", 63190, 65536, 54061)  # D50 in 16.16 fixed point
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, kind, space, connection) + date + b"acsp"
    return (header + b"\0" * 28 + white).ljust(128, b"\0") + table + body


def linear_grey_profile() -> bytes:
    """Grey with linear-light values instead of the usual gamma."""
    curve = b"curv\0\0\0\0" + struct.pack(">I", 0)
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    return _profile(b"GRAY", b"XYZ ", b"mntr", {b"wtpt": white, b"kTRC": curve})


def cmyk_profile_with_green_cyan() -> bytes:
    """CMYK in which paper is white, cyan ink is a green, and any other mixture is black."""
    corners = [(0, 128, 128)] * 16  # Lab of the table's 2⁴ corners, cyan slowest
    corners[0b0000] = 255, 128, 128
    corners[0b1000] = 128, 64, 192
    identity = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0])
    table += struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table += identity * 4 + bytes(value for corner in corners for value in corner) + identity * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    return _profile(b"CMYK", b"Lab ", b"prtr", {b"wtpt": white, b"A2B0": table})


def quadrants(width: int = 64, height: int = 32) -> np.ndarray:
    """Red, green / blue, white: no two of its orientations look alike."""
    image = np.empty((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = 255, 0, 0
    image[: height // 2, width // 2 :] = 0, 255, 0
    image[height // 2 :, : width // 2] = 0, 0, 255
    image[height // 2 :, width // 2 :] = 255, 255, 255
    return image


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()
