"""PNG files are whole or absent."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from refimpl.errors import InputError
from refimpl.sample.images.picture_files import write_image


def test_a_full_disk_leaves_no_half_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(_: Image.Image, path: Path) -> None:
        path.write_bytes(b"\x89PNG")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(InputError, match=r"could not write the picture .*a\.png: .*No space left on device"):
        write_image(torch.zeros(3, 4, 4), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
