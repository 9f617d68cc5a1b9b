"""Scale-and-shift folded into the autoencoder: tools that know only 0.13025 get the same images (N App. B)."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from refimpl.errors import InputError
from refimpl.interop import single_file
from refimpl.interop.checkpoint import Checkpoint
from refimpl.interop.network.networks import vae_of
from refimpl.interop.single_file.folded import FOLDED, folded
from refimpl.latents.scale_shift import NOVELAI_ANIME, SDXL_DEFAULT, SDXL_FACTOR, ScaleShift
from tests.interop.checkpoints import same_bits, working
from tests.tolerances import FOLDED_DECODE


@torch.no_grad()
def test_other_tools_decode_what_we_decode(tmp_path: Path) -> None:
    """data x: ours is decode(x·σ + μ) with the plain autoencoder, theirs decode(x / 0.13025) with the folded."""
    source, path = working(scale_shift=NOVELAI_ANIME), tmp_path / "folded.safetensors"
    single_file.save(source, path, fold_scale_shift=True)
    read = single_file.load(path)
    assert read.scale_shift == SDXL_DEFAULT
    assert ScaleShift.from_json(read.metadata[FOLDED]) == NOVELAI_ANIME
    ours, theirs = vae_of(source, "ours"), vae_of(read, "theirs")
    x = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    picture = ours.decode(NOVELAI_ANIME.restore(x))
    assert (theirs.decode(x / SDXL_FACTOR) - picture).abs().max() <= FOLDED_DECODE * picture.abs().max()
    data = NOVELAI_ANIME.standardise(ours.encode(picture))
    assert (SDXL_FACTOR * theirs.encode(picture) - data).abs().max() <= FOLDED_DECODE * data.abs().max()


def test_only_the_two_convolutions_change() -> None:
    source = working(scale_shift=NOVELAI_ANIME)
    read = folded(source, "file")
    assert same_bits(read.unet, source.unet)
    changed = {
        key for key, value in (source.vae or {}).items() if not torch.equal(value, (read.vae or {})[key])
    }
    assert changed == {
        f"{conv}.{kind}" for conv in ("quant_conv", "post_quant_conv") for kind in ("weight", "bias")
    }


def test_what_is_plain_stays(tmp_path: Path) -> None:
    source = working()
    assert folded(source, "file") is source
    single_file.save(source, tmp_path / "a.safetensors", fold_scale_shift=True)
    assert FOLDED not in single_file.load(tmp_path / "a.safetensors").metadata


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_of_the_file_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    """Folded values are rounded once, from float64."""
    single_file.save(working(scale_shift=NOVELAI_ANIME), tmp_path / "half.safetensors", dtype)
    half = single_file.load(tmp_path / "half.safetensors")
    wide = replace(half, vae={key: value.double() for key, value in (half.vae or {}).items()})
    ours, exact = folded(half, "file").vae or {}, folded(wide, "file").vae or {}
    assert all(ours[key].dtype == dtype and torch.equal(ours[key], exact[key].to(dtype)) for key in ours)


def test_without_an_autoencoder_there_is_nothing_to_fold_into() -> None:
    source = working(scale_shift=NOVELAI_ANIME)
    with pytest.raises(InputError, match=r"x\.safetensors: there is no autoencoder to fold"):
        folded(replace(source, vae=None), "x.safetensors")
    with pytest.raises(InputError, match="statistics of 2 channels do not fit"):
        folded(replace(source, scale_shift=ScaleShift((0.0, 1.0), (1.0, 2.0))), "x.safetensors")


def test_a_new_scale_shift_forgets_what_was_folded_before(tmp_path: Path) -> None:
    again = replace(folded(working(scale_shift=NOVELAI_ANIME), "file"), scale_shift=NOVELAI_ANIME)
    assert isinstance(again, Checkpoint)
    single_file.save(again, tmp_path / "again.safetensors")
    read = single_file.load(tmp_path / "again.safetensors")
    assert FOLDED not in read.metadata
    assert read.scale_shift == NOVELAI_ANIME
