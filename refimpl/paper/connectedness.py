"""Whether a drawn shape is in one piece: the measure of coherence for N Fig. 6 and 7."""

import torch
from torch import Tensor

ROUNDS = 8  # of two-means; two colours settle in a few


def connectedness(images: Tensor) -> Tensor:
    """The share of a shape that is its largest connected piece, for images [B, 3, H, W] → [B] in 0 … 1.

    An image is divided into two colours; the shape is the one that holds less of the border. 1 is a shape in one
    piece; so is an image of one colour, of which no piece is separate.
    """
    return torch.stack([_of_one(image.double().cpu()) for image in images])


def _of_one(image: Tensor) -> Tensor:
    is_second = _two_colours(image)
    border = torch.cat([is_second[0], is_second[-1], is_second[:, 0], is_second[:, -1]])
    shape = is_second if border.double().mean() < 0.5 else ~is_second
    if not shape.any():
        return torch.tensor(1.0, dtype=torch.float64)
    return largest_piece(shape).double() / shape.sum()


def _two_colours(image: Tensor) -> Tensor:
    """The nearer of two colours of each pixel, [H, W] bool, by two-means from two pixels far from each other."""
    pixels = image.flatten(1).T
    first = pixels[(pixels - pixels.mean(0)).square().sum(1).argmax()]
    centres = torch.stack([first, pixels[(pixels - first).square().sum(1).argmax()]])
    nearest = torch.cdist(pixels, centres).argmin(1)
    for _ in range(ROUNDS):
        if len(nearest.unique()) < 2:
            break
        centres = torch.stack([pixels[nearest == side].mean(0) for side in (0, 1)])
        nearest = torch.cdist(pixels, centres).argmin(1)
    return nearest.bool().reshape(image.shape[1:])


def largest_piece(shape: Tensor) -> Tensor:
    """Pixels of the largest piece of a shape [H, W] bool, joined by their sides."""
    height, width = shape.shape
    labels = torch.arange(1, height * width + 1).reshape(height, width) * shape
    while True:
        grown = torch.nn.functional.pad(labels, (1, 1, 1, 1))
        neighbours = torch.stack(
            [labels, grown[:-2, 1:-1], grown[2:, 1:-1], grown[1:-1, :-2], grown[1:-1, 2:]]
        )
        larger = neighbours.amax(0) * shape
        if torch.equal(larger, labels):
            return torch.bincount(labels.flatten())[1:].max()
        labels = larger
