"""Resizing a coordinate image for peers whose own resize needs a package that is not installed (OpenCV, torchvision).

The checks' image rises evenly along one axis per channel, so that one line of each channel is the whole of it, and a
resize by linear interpolation is the only sensible one. Where the image is then cropped is the peer's own code.
"""

import numpy as np
import torch
from torch import Tensor


def resize_coordinates(image: Tensor, width: int, height: int) -> Tensor:
    """A coordinate image [3, H, W] at another size."""
    resized = torch.empty(3, height, width)
    resized[0] = _line(image[0, 0], width)
    resized[1] = _line(image[1, :, 0], height)[:, None]
    resized[2] = image[2, 0, 0]
    return resized


def resize_array(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The same for an array [H, W, 3]."""
    resized = resize_coordinates(torch.from_numpy(np.asarray(image)).permute(2, 0, 1), width, height)
    return resized.permute(1, 2, 0).numpy()


def _line(values: Tensor, length: int) -> Tensor:
    place = (torch.arange(length, dtype=torch.float64) + 0.5) * len(values) / length - 0.5
    first, slope = float(values[0]), float(values[-1] - values[0]) / max(len(values) - 1, 1)
    return first + slope * place  # beyond the ends as well, where a filter would have to repeat them
