"""From JPEG bytes to a bucket's crop: the fast decoder against Pillow's decoding and Lanczos, on one core.

python -m benchmarks.bench_images [--rounds N]        writes results/images.json
Exits with 1 when the fast decoder is less than 3 times as fast, or further than 2 levels from Pillow.
"""

import argparse
import importlib.metadata
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data

from benchmarks.timing import interleaved, summary, write
from refimpl.data.crop import cover_and_crop
from refimpl.data.images.decode import decode
from refimpl.data.images.fast_jpeg import decode_fast
from tests.tolerances import LANCZOS_LEVELS

BUCKET = (832, 1216)
SIZE = (1024, 1464)  # 1.5 megapixels
WANTED = 3.0  # times as fast


def photographs(folder: Path) -> list[Path]:
    """Four photographs of 1.5 megapixels as JPEG of quality 92."""
    paths = []
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        image = Image.fromarray(getattr(data, name)()).resize(SIZE, Image.Resampling.BICUBIC)
        paths.append(folder / f"{name}.jpg")
        image.save(paths[-1], quality=92)
    return paths


def by_pillow(path: Path) -> np.ndarray:
    """Decoded, scaled and cropped as `data.decoder = 'pillow'` does."""
    return np.asarray(cover_and_crop(decode(path), BUCKET, np.random.default_rng(0))[0])


def fast(path: Path) -> np.ndarray:
    """The same as `data.decoder = 'fast'` does."""
    return cover_and_crop(decode_fast(path), BUCKET, np.random.default_rng(0), "torch")[0]


def main() -> None:
    """Assert, time, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds over the four photographs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = photographs(Path(folder))
        difference = max(int(np.abs(by_pillow(p).astype(int) - fast(p)).max()) for p in paths)
        seconds = interleaved(
            {
                "pillow": lambda: [by_pillow(path) for path in paths],
                "fast": lambda: [fast(path) for path in paths],
                "pillow, decoding": lambda: [decode(path) for path in paths],
                "fast, decoding": lambda: [decode_fast(path) for path in paths],
            },
            arguments.rounds,
        )
    per_image = {name: [value / len(paths) for value in values] for name, values in seconds.items()}
    ratios = [slow / quick for slow, quick in zip(per_image["pillow"], per_image["fast"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    result = {
        "pillow": importlib.metadata.version("pillow"),
        "simplejpeg": importlib.metadata.version("simplejpeg"),
        "image": SIZE,
        "bucket": BUCKET,
        "rounds": arguments.rounds,
        "times per image": {name: summary(values) for name, values in per_image.items()},
        "fast is faster by": {"median": middle, "quartile_low": low, "quartile_high": high},
        "largest difference, levels": difference,
    }
    print(
        f"fast is {middle:.2f} ({low:.2f}–{high:.2f}) times as fast, at most {difference} levels from Pillow"
    )
    print(f"wrote {write('images', result)}")
    if middle < WANTED or difference > LANCZOS_LEVELS:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
