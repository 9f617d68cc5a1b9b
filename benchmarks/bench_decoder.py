"""A decoder that learned JPEG's blocks, finetuned on clean pictures (N §4.4): blockiness falls, PSNR rises.

python -m benchmarks.bench_decoder [--steps N]        writes results/decoder.json

The demo's training images are cut to 64 × 64, one half of them saved as JPEG of quality 5. A small autoencoder is
trained on that half, and draws blocks. Its decoder is then finetuned on all, those above a limit of blockiness left
out, and measured on held-out clean pictures. Exits with 1 unless blockiness falls and PSNR and SSIM rise.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image

from benchmarks.timing import write
from refimpl.autoencoder.decoder import finetune_decoder
from refimpl.autoencoder.decoder_config import DecoderConfig
from refimpl.autoencoder.decoder_measures import measure_decoder, without_jpeg_blocks
from refimpl.autoencoder.training import train_autoencoder
from refimpl.data.demo.data_set import write_demo_images
from refimpl.data.index.data_set import Index, read_folder
from refimpl.latents.config import LatentConfig
from refimpl.latents.vae import VAE, VAEConfig
from refimpl.run.world import World

KINDS = ("gradient", "landscape", "photo")  # pictures whose tones change slowly, where blocks show
SIDE = 64
QUALITY = 5
LIMIT = 1.3
CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


def cut_images(folder: Path) -> tuple[Index, Index, Index]:
    """The blocky half, all training images, and the held-out ones; each 64 × 64."""
    write_demo_images(folder / "demo")
    for name in ("blocky", "all", "heldout"):
        (folder / name).mkdir()
    for part, names in (("train", ("blocky", "all")), ("heldout", ("heldout",))):
        paths = [
            path for kind in KINDS for path in sorted((folder / "demo" / part).glob(f"{kind}_*.[jp][pn]g"))
        ]
        for number, path in enumerate(paths):
            image = centre_square(Image.open(path).convert("RGB"))
            is_blocky = part == "train" and number % 2 == 0
            for name in names:
                if is_blocky:
                    image.save(folder / name / f"{path.stem}.jpg", quality=QUALITY)
                elif name != "blocky":
                    image.save(folder / name / f"{path.stem}.png")
                if is_blocky or name != "blocky":
                    (folder / name / f"{path.stem}.txt").write_text("a picture")
    return read_folder(folder / "blocky"), read_folder(folder / "all"), read_folder(folder / "heldout")


def centre_square(image: Image.Image) -> Image.Image:
    """The largest centre square, scaled to 64 × 64."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def bits(vae: VAE) -> dict[str, torch.Tensor]:
    """The encoder's tensors."""
    return {n: v.clone() for n, v in vae.state_dict().items() if n.startswith(("encoder.", "quant_conv."))}


def main() -> None:
    """Train, finetune, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first-steps", type=int, default=800, help="of the autoencoder, on blocky pictures")
    parser.add_argument("--steps", type=int, default=800, help="of the decoder's finetuning")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    first = LatentConfig(
        train_steps=arguments.first_steps, train_batch=8, train_size=SIDE, train_learning_rate=1e-3
    )
    config = DecoderConfig(
        steps=arguments.steps, size=SIDE, learning_rate=5e-4, max_blockiness=LIMIT, ema_decay=0.99
    )
    with tempfile.TemporaryDirectory() as name:
        blocky, every, heldout = cut_images(Path(name))
        vae = train_autoencoder(blocky, VAEConfig.tiny(), first, 0, CPU)
        before, encoder = measure_decoder(vae, heldout, SIDE, ALONE), bits(vae)
        clean, left_out = without_jpeg_blocks(every, LIMIT, ALONE)
        vae = finetune_decoder(vae, clean, config, Path(name) / "run", ALONE)
        after = measure_decoder(vae, heldout, SIDE, ALONE)
    assert all(torch.equal(value, encoder[name]) for name, value in bits(vae).items())
    result = {
        "images": {
            "blocky": len(blocky),
            "all": len(every),
            "left out": len(left_out),
            "heldout": len(heldout),
        },
        "steps": {"autoencoder": arguments.first_steps, "decoder": arguments.steps},
        "jpeg quality": QUALITY,
        "blockiness limit": LIMIT,
        "before": before,
        "after": after,
    }
    for when in ("before", "after"):
        print(f"{when:<6} " + "   ".join(f"{n} {v:.4f}" for n, v in result[when].items()))
    print(f"{len(left_out)} of {len(every)} images left out; wrote {write('decoder', result)}")
    worse = abs(after["blockiness"] - 1) >= abs(before["blockiness"] - 1)
    if worse or after["psnr"] <= before["psnr"] or after["ssim"] <= before["ssim"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
