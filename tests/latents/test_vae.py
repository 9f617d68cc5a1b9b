"""The autoencoder against diffusers' with the same weights, and against its published size."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.errors import InputError
from refimpl.interop.diffusers_folder.configs import vae_table
from refimpl.interop.diffusers_folder.vae_keys import vae_to_diffusers
from refimpl.latents.scale_shift import ScaleShift
from refimpl.latents.vae import VAE, VAEConfig
from tests.strategies import vae_configs
from tests.tensors import relative_error
from tests.tolerances import BFLOAT16_ROUNDING, NETWORK_BFLOAT16_FACTOR, NETWORK_FLOAT32, NETWORK_FLOAT64

SMALL = VAEConfig(channels=4, channel_mult=(1, 2, 2), res_blocks=1, groups=2)
PUBLISHED_KEYS = {  # a tensor of each kind, as found in sd_xl_base_1.0.safetensors
    "encoder.conv_in.weight": (128, 3, 3, 3),
    "encoder.down.0.block.0.norm1.weight": (128,),
    "encoder.down.0.downsample.conv.weight": (128, 128, 3, 3),
    "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
    "encoder.down.3.block.1.conv2.bias": (512,),
    "encoder.mid.block_1.conv1.weight": (512, 512, 3, 3),
    "encoder.mid.attn_1.norm.weight": (512,),
    "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
    "encoder.mid.attn_1.proj_out.bias": (512,),
    "encoder.norm_out.weight": (512,),
    "encoder.conv_out.weight": (8, 512, 3, 3),
    "decoder.conv_in.weight": (512, 4, 3, 3),
    "decoder.mid.block_2.norm2.bias": (512,),
    "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
    "decoder.up.0.block.2.conv1.weight": (128, 128, 3, 3),
    "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
    "decoder.conv_out.weight": (3, 128, 3, 3),
    "quant_conv.weight": (8, 8, 1, 1),
    "post_quant_conv.weight": (4, 4, 1, 1),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from threads, and wait for them on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def diffusers_vae(config: VAEConfig) -> AutoencoderKL:
    return AutoencoderKL.from_config(vae_table(config, ScaleShift.from_factor(1, config.latent_channels)))


def to_diffusers(state: dict[str, torch.Tensor], config: VAEConfig) -> dict[str, torch.Tensor]:
    """Every tensor under its diffusers name and in its diffusers shape."""
    return vae_to_diffusers(state, config, "test")


def pair(config: VAEConfig) -> tuple[VAE, AutoencoderKL]:
    """Our autoencoder and the oracle, with equal weights in separate storage."""
    torch.manual_seed(0)
    ours, theirs = VAE(config), diffusers_vae(config)
    theirs.load_state_dict(to_diffusers(ours.state_dict(), config))
    return ours, theirs


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def test_full_size_has_the_published_tensors() -> None:
    config = VAEConfig.sdxl()
    with torch.device("meta"):
        state = VAE(config).state_dict()
        oracle = diffusers_vae(config).state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 83_653_863
    assert len(state) == 248
    assert {key: tuple(state[key].shape) for key in PUBLISHED_KEYS} == PUBLISHED_KEYS
    shapes = {key: tensor.shape for key, tensor in to_diffusers(state, config).items()}
    assert shapes == {key: tensor.shape for key, tensor in oracle.items()}


def test_meta_device_gives_shapes() -> None:
    with torch.device("meta"):
        latents = VAE(VAEConfig.sdxl()).encode(torch.empty(1, 3, 1216, 832))
    assert latents.shape == (1, 4, 152, 104)


def test_presets_have_eight_pixels_per_cell_and_four_channels() -> None:
    for config in (VAEConfig.sdxl(), VAEConfig.tiny()):
        assert (config.factor, config.latent_channels) == (8, 4)


@settings(max_examples=10)
@given(vae_configs(), st.integers(1, 4), st.integers(1, 4))
def test_outputs_and_gradients_equal_diffusers(config: VAEConfig, height: int, width: int) -> None:
    ours, theirs = pair(config)
    images = normal(2, config.image_channels, height * config.factor, width * config.factor)
    with torch.no_grad():
        mean, logvar = ours.moments(images)
        posterior = theirs.encode(images).latent_dist
        assert mean.shape == (2, config.latent_channels, height, width)
        assert relative_error(mean, posterior.mean) <= NETWORK_FLOAT32
        assert relative_error(logvar, posterior.logvar) <= NETWORK_FLOAT32
        latents = 3 * posterior.mean
        assert relative_error(ours.decode(latents), theirs.decode(latents).sample) <= NETWORK_FLOAT32

    ours, theirs, images = ours.double(), theirs.double(), images.double()  # gradients of float32 are noisy
    ours.decode(ours.encode(images)).pow(3).sum().backward()
    theirs.decode(theirs.encode(images).latent_dist.mean).sample.pow(3).sum().backward()
    gradients = to_diffusers({name: p.grad for name, p in ours.named_parameters()}, config)
    scale = max(p.grad.abs().max() for p in theirs.parameters())
    for name, parameter in theirs.named_parameters():
        assert (gradients[name] - parameter.grad).abs().max() <= NETWORK_FLOAT64 * scale, name


def test_encode_is_the_mean_and_logvar_is_clamped() -> None:
    vae = VAE(SMALL)
    images = normal(1, 3, 8, 8)
    with torch.no_grad():
        vae.quant_conv.bias[SMALL.latent_channels :] = torch.tensor([1e4, -1e4, 0, 0])
        mean, logvar = vae.moments(images)
        assert torch.equal(vae.encode(images), mean)
    assert (logvar[:, 0] == 20).all()
    assert (logvar[:, 1] == -30).all()


@settings(max_examples=10)
@given(vae_configs(), st.integers(1, 4), st.integers(1, 4))
def test_bfloat16_is_as_near_to_float64_as_diffusers(config: VAEConfig, height: int, width: int) -> None:
    ours, theirs = pair(config)
    ours, theirs = ours.bfloat16(), theirs.bfloat16()
    images = normal(2, config.image_channels, height * config.factor, width * config.factor).bfloat16()
    latents = normal(2, config.latent_channels, height, width).bfloat16()
    with torch.no_grad():
        results = [
            (ours.encode(images), theirs.encode(images).latent_dist.mean),
            (ours.decode(latents), theirs.decode(latents).sample),
        ]
        wide = ours.double()
        exact = [wide.encode(images.double()), wide.decode(latents.double())]
    for (mine, oracle), expected in zip(results, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        allowed = NETWORK_BFLOAT16_FACTOR * relative_error(oracle.double(), expected) + BFLOAT16_ROUNDING
        assert relative_error(mine.double(), expected) <= allowed


def test_float16_is_refused_wherever_it_comes_from() -> None:
    images, latents = normal(1, 3, 8, 8), normal(1, 4, 2, 2)
    vae = VAE(SMALL)
    for call, x in ((vae.encode, images), (vae.moments, images), (vae.decode, latents)):
        with pytest.raises(InputError, match="float16"):
            call(x.half())
        with torch.autocast("cpu", torch.float16), pytest.raises(InputError, match="float16"):
            call(x)
    half = VAE(SMALL).half()
    for call, x in ((half.encode, images), (half.decode, latents)):
        with pytest.raises(InputError, match="float16"):
            call(x)


def test_bfloat16_autocast_gives_the_dtype_of_the_input() -> None:
    vae = VAE(SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encode(normal(1, 3, 8, 8))
        assert latents.dtype == torch.float32
        assert vae.decode(latents).dtype == torch.float32


@pytest.mark.parametrize("tile", [64, 80, 1024])
def test_one_tile_gives_the_same_bits(tile: int) -> None:
    vae = VAE(SMALL)
    images = normal(1, 3, 64, 48)
    with torch.no_grad():
        latents = vae.encode(images)
        assert torch.equal(vae.encode(images, tile=tile), latents)
        assert torch.equal(vae.decode(latents, tile=tile), vae.decode(latents))


@pytest.mark.parametrize("tile", [0, -8, 4, 6, 63, 16.0])
def test_impossible_tiles_are_refused(tile: int) -> None:
    with pytest.raises(InputError, match=f"tile = {tile}"):
        VAE(SMALL).encode(torch.zeros(1, 3, 8, 8), tile=tile)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 8, 10), "10 × 8"),
        ((1, 3, 9, 8), "multiples of 4"),
        ((1, 4, 8, 8), "shape"),
        ((3, 8, 8), "shape"),
        ((1, 3, 0, 8), "shape"),
        ((), "shape"),
    ],
)
def test_wrong_pictures_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VAE(SMALL).encode(torch.zeros(shape))


def test_integer_pixels_are_refused() -> None:
    with pytest.raises(InputError, match="uint8"):
        VAE(SMALL).encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(1, 3, 2, 2), (4, 2, 2), (1, 4, 2, 0)])
def test_wrong_latents_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="latents"):
        VAE(SMALL).decode(torch.zeros(shape))


def test_empty_batch_gives_an_empty_result() -> None:
    vae = VAE(SMALL)
    assert vae.encode(torch.zeros(0, 3, 8, 8)).shape == (0, 4, 2, 2)
    assert vae.decode(torch.zeros(0, 4, 2, 2)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 0},
        {"channels": 3},
        {"groups": 3},
        {"channel_mult": ()},
        {"channel_mult": (1, -1)},
        {"channel_mult": 2},
        {"res_blocks": 1.0},
        {"latent_channels": 0},
    ],
)
def test_impossible_configs_are_refused(change: dict) -> None:
    with pytest.raises(InputError, match="VAEConfig"):
        dataclasses.replace(SMALL, **change)
