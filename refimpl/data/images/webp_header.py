"""Size and orientation of a WebP file from its headers (RFC 9649); Pillow would read and parse the whole file."""

import re
import struct
from typing import BinaryIO

_ORIENTATION = 0x0112
_ICC, _ALPHA, _EXIF = 0x20, 0x10, 0x08  # flags of VP8X that may stand in a file read here


def webp_size(file: BinaryIO, length: int) -> tuple[int, int, int] | None:
    """(width, height, EXIF orientation) of a WebP file; None for one that is left to Pillow.

    file    positioned at its start; length  of the file in bytes
    Handled here: still images whose RIFF size fits into the file and whose EXIF, if any, has one valid orientation.
    Left to Pillow: animations, files with XMP, which may also hold an orientation, and anything unusual.
    """
    head = file.read(30)
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    end = 8 + struct.unpack_from("<I", head, 4)[0]
    kind = head[12:16]
    if end > length or end % 2:
        return None
    if kind == b"VP8X":
        flags, width, height = head[20], _three_bytes(head, 24) + 1, _three_bytes(head, 27) + 1
        if flags & ~(_ICC | _ALPHA | _EXIF):
            return None
        orientation = _extended_orientation(file, end, (width, height))
        return None if orientation is None else (width, height, orientation)
    size = _bitstream_size(kind, head[20:])
    return None if size is None else (*size, 1)


def _three_bytes(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")


def _bitstream_size(kind: bytes, data: bytes) -> tuple[int, int] | None:
    """Size of a lossy key frame (RFC 6386 §9.1) or a lossless bitstream, from its first ten bytes."""
    if kind == b"VP8 " and data[3:6] == b"\x9d\x01\x2a" and not data[0] & 1:
        width, height = struct.unpack_from("<HH", data, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and data[0] == 0x2F:
        bits = struct.unpack_from("<I", data, 1)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def _extended_orientation(file: BinaryIO, end: int, canvas: tuple[int, int]) -> int | None:
    """EXIF orientation of an extended-format file, 1 without EXIF; None if its chunks are not those of a still."""
    at, frame_seen, orientation = 30, False, 1
    while at < end:
        file.seek(at)
        head = file.read(18)
        if len(head) < 8:
            return None
        kind, size = head[:4], struct.unpack_from("<I", head, 4)[0]
        if at + 8 + size > end:
            return None
        if kind in (b"VP8 ", b"VP8L"):
            if frame_seen or len(head) < 18 or _bitstream_size(kind, head[8:]) != canvas:
                return None
            frame_seen = True
        elif kind == b"EXIF":
            file.seek(at + 8)
            found = _plain_orientation(file.read(size))
            if found is None:
                return None
            orientation = found
        elif kind not in (b"ICCP", b"ALPH"):
            return None
        at += 8 + size + size % 2
    return orientation if frame_seen else None


def _plain_orientation(exif: bytes) -> int | None:
    """Orientation in the first directory of EXIF data; None unless it occurs there once, as one SHORT from 1 to 8."""
    data = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None or len(data) < 14:
        return None
    start = struct.unpack_from(f"{order}I", data, 4)[0]
    if start + 2 > len(data):
        return None
    count = struct.unpack_from(f"{order}H", data, start)[0]
    if start + 2 + 12 * count > len(data):
        return None
    entries = [struct.unpack_from(f"{order}HHIH", data, start + 2 + 12 * number) for number in range(count)]
    found = [value for tag, kind, n, value in entries if tag == _ORIENTATION and (kind, n) == (3, 1)]
    is_plain = len(found) == 1 and sum(tag == _ORIENTATION for tag, *_ in entries) == 1
    return found[0] if is_plain and re.fullmatch("[1-8]", str(found[0])) else None
