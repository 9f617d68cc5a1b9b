"""The autoencoder at its full size, on a photograph of 1.5 megapixels: whole and in tiles (S §2.4)."""

from pathlib import Path

import pytest
import torch

from benchmarks.bench_vae import CASES, measured, photograph, random_vae
from refimpl.storage import safetensors_file
from tests.tolerances import NETWORK_FLOAT32


@pytest.mark.slow
def test_tiles_give_the_whole_and_take_less_memory(tmp_path: Path) -> None:
    """A smaller square than the benchmark's, so that it takes minutes: 768 px in tiles of 64 rows."""
    found = {case: measured(case, 768, 64, tmp_path) for case in CASES}
    for what in ("encode", "decode"):
        whole, tiled = (
            safetensors_file.read(tmp_path / f"{what} {how}")[0]["x"] for how in ("whole", "tiled")
        )
        assert tiled.shape == whole.shape
        assert (tiled - whole).abs().max() <= NETWORK_FLOAT32 * whole.abs().max()
        working = {how: found[f"{what} {how}"]["peak_bytes"] for how in ("whole", "tiled")}
        assert working["tiled"] < working["whole"]


@pytest.mark.slow
def test_a_tile_that_covers_the_picture_gives_the_wholes_bits() -> None:
    vae, x = random_vae(), photograph(256)
    with torch.no_grad():
        latents = vae.encode(x)
        assert torch.equal(vae.encode(x, 256), latents)
        assert torch.equal(vae.decode(latents, 256), vae.decode(latents))
