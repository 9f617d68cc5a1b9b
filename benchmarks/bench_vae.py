"""The autoencoder at its full size on a photograph of 1.5 megapixels: whole, and in tiles.

python -m benchmarks.bench_vae [--tile 64] [--side 1224] [--decode-side 1224]       writes results/vae.json

Decoding takes longer, and can be measured on the middle of the latents, of a smaller picture.

Every case runs in a process of its own, on one thread, so that its peak of memory is its own. The weights are random,
83,653,863 of them, scaled so that every map keeps the variance: what is measured is the arithmetic, which does not
depend on their values. A tile is as wide as the picture; layers are applied to one tile after another, and what
comes out must be the whole's result within the bound of float32 networks, and its bits where one tile covers it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.timing import write
from refimpl.data.demo.photographs import PHOTOGRAPHS, locate
from refimpl.latents.pixels import from_pixels
from refimpl.latents.vae import VAE, VAEConfig
from refimpl.storage import safetensors_file
from tests.tolerances import NETWORK_FLOAT32

PHOTOGRAPH = "retina.jpg"  # the largest that scikit-image bundles: 1411 × 1411 px, CC0
SIDE, TILE = (
    1224,
    64,
)  # px; 1.498 megapixels, and the tile that `refimpl cache` suggests where memory is short
CASES = ("encode whole", "encode tiled", "decode whole", "decode tiled")


def photograph(side: int) -> Tensor:
    """The middle of the photograph, [1, 3, side, side] in −1 … 1."""
    path = next(locate(found) for found in PHOTOGRAPHS if found.file == PHOTOGRAPH)
    image = Image.open(path).convert("RGB")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    pixels = np.asarray(image.crop((left, top, left + side, top + side)))
    return from_pixels(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])


def random_vae(config: VAEConfig | None = None) -> VAE:
    """An autoencoder, of SDXL's full size, whose convolutions keep the variance of what passes through them."""
    torch.manual_seed(0)
    vae = VAE(config or VAEConfig.sdxl())
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.mul_(3**0.5)
    return vae.eval().requires_grad_(False)


def run(case: str, side: int, tile: int, folder: Path) -> None:
    """One case in this process: writes its result, and prints its seconds and its memory as JSON."""
    torch.set_num_threads(1)
    vae, (what, how) = random_vae(), case.split()
    x = (
        photograph(side)
        if what == "encode"
        else middle(safetensors_file.read(folder / "encode whole")[0]["x"], side // vae.config.factor)
    )
    before = peak()
    began, processor = time.perf_counter(), time.process_time()
    with torch.no_grad():
        y = (vae.encode if what == "encode" else vae.decode)(x, None if how == "whole" else tile)
    seconds, busy = time.perf_counter() - began, time.process_time() - processor
    if how == "tiled":  # and the tile that covers it, on a corner that takes a moment
        corner = x[..., : 64 if what == "encode" else 8, : 64 if what == "encode" else 8]
        function = vae.encode if what == "encode" else vae.decode
        assert torch.equal(function(corner, 64), function(corner))
    safetensors_file.write(folder / case, {"x": y})
    told = {
        "side": side,
        "processor_seconds": busy,
        "seconds": seconds,
        "peak_bytes": peak(),
        "network_and_input_bytes": before,
    }
    print(json.dumps(told))


def middle(x: Tensor, side: int) -> Tensor:
    """The middle square of a map [1, C, H, W]."""
    top, left = ((size - side) // 2 for size in x.shape[2:])
    return x[:, :, top : top + side, left : left + side].clone()


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def distance(whole: Tensor, tiled: Tensor) -> dict[str, float]:
    """How far the tiled result is from the whole one, and the largest value, which bounds are relative to."""
    apart = (tiled - whole).double()
    return {
        "rms_difference": apart.square().mean().sqrt().item(),
        "largest_difference": apart.abs().max().item(),
        "largest_value": whole.abs().max().item(),
    }


def measured(case: str, side: int, tile: int, folder: Path) -> dict[str, float]:
    """What `run` prints of a case, in a process of its own unless the folder holds it already."""
    kept = folder / f"{case} {side} {tile}.json"
    if not kept.exists():
        command = [sys.executable, "-m", "benchmarks.bench_vae", "--case", case, "--folder", str(folder)]
        command += ["--side", str(side), "--tile", str(tile)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        kept.write_text(done.stdout.splitlines()[-1])
        print(case, kept.read_text(), flush=True)
    return json.loads(kept.read_text())


def main() -> None:
    """Runs the cases one after another, compares, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--side", type=int, default=SIDE, help="px of the square that is cut from the photograph"
    )
    parser.add_argument("--decode-side", type=int, help="px of what is decoded; --side if left out")
    parser.add_argument("--tile", type=int, default=TILE, help="px, height of a tile")
    parser.add_argument("--only", nargs="+", choices=("encode", "decode"), default=("encode", "decode"))
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument(
        "--folder", type=Path, help="where results are kept: what is there is not measured again"
    )
    options = parser.parse_args()
    if options.case:
        run(options.case, options.side, options.tile, options.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(exist_ok=True)
        cases = [case for case in CASES if case.split()[0] in options.only]
        sides = {"encode": options.side, "decode": options.decode_side or options.side}
        rows = {case: measured(case, sides[case.split()[0]], options.tile, folder) for case in cases}
        for what in options.only:
            whole, tiled = (
                safetensors_file.read(folder / f"{what} {how}")[0]["x"] for how in ("whole", "tiled")
            )
            apart = distance(whole, tiled)
            assert apart["largest_difference"] <= NETWORK_FLOAT32 * apart["largest_value"], apart
            rows[f"{what} tiled"] |= apart
    size = {"tile": options.tile, "photograph": PHOTOGRAPH, "threads_of_a_case": 1}
    write("vae", {**size, "rows": rows})


if __name__ == "__main__":
    main()
