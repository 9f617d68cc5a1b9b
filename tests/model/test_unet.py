"""The UNet against diffusers' with the same weights, and against the numbers of S Tab. 1."""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from refimpl.errors import InputError
from refimpl.model.unet import UNet, UNetConfig
from refimpl.ops import load_ops
from tests import strategies
from tests.model.diffusers_unet import (
    SIZE_FEATURES,
    SIZES,
    Inputs,
    diffusers_unet,
    inputs,
    to_diffusers,
    trained_looking,
)
from tests.tensors import relative_error
from tests.tolerances import (
    BFLOAT16_ROUNDING,
    NETWORK_BFLOAT16_FACTOR,
    NETWORK_FLOAT32,
    NETWORK_FLOAT64,
    SINUSOID_FLOAT32,
)

SMALL = UNetConfig(
    channels=8,
    channel_mult=(1, 2, 3),
    transformer_depth=(0, 1, 2),
    middle_depth=2,
    res_blocks=1,
    head_dim=4,
    context_dim=6,
    vector_dim=5 + SIZES * SIZE_FEATURES,
    groups=4,
)
INPUTS = ("x", "t", "context", "pooled", "sizes")
PUBLISHED_KEYS = {  # a tensor of each kind, as found in sd_xl_base_1.0.safetensors
    "time_embed.0.weight": (1280, 320),
    "time_embed.2.bias": (1280,),
    "label_emb.0.0.weight": (1280, 2816),
    "label_emb.0.2.weight": (1280, 1280),
    "input_blocks.0.0.weight": (320, 4, 3, 3),
    "input_blocks.1.0.in_layers.0.weight": (320,),
    "input_blocks.1.0.in_layers.2.weight": (320, 320, 3, 3),
    "input_blocks.1.0.emb_layers.1.weight": (320, 1280),
    "input_blocks.1.0.out_layers.0.bias": (320,),
    "input_blocks.1.0.out_layers.3.weight": (320, 320, 3, 3),
    "input_blocks.3.0.op.weight": (320, 320, 3, 3),
    "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
    "input_blocks.4.1.norm.weight": (640,),
    "input_blocks.4.1.proj_in.weight": (640, 640),
    "input_blocks.4.1.transformer_blocks.1.attn1.to_q.weight": (640, 640),
    "input_blocks.4.1.transformer_blocks.1.attn1.to_out.0.bias": (640,),
    "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
    "input_blocks.4.1.transformer_blocks.0.attn2.to_v.weight": (640, 2048),
    "input_blocks.8.1.transformer_blocks.9.ff.net.0.proj.weight": (10240, 1280),
    "input_blocks.8.1.transformer_blocks.9.ff.net.2.weight": (1280, 5120),
    "input_blocks.8.1.transformer_blocks.9.norm3.bias": (1280,),
    "input_blocks.8.1.proj_out.weight": (1280, 1280),
    "middle_block.0.in_layers.2.weight": (1280, 1280, 3, 3),
    "middle_block.1.transformer_blocks.9.norm1.weight": (1280,),
    "middle_block.2.out_layers.3.bias": (1280,),
    "output_blocks.0.0.in_layers.2.weight": (1280, 2560, 3, 3),
    "output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
    "output_blocks.5.0.skip_connection.weight": (640, 960, 1, 1),
    "output_blocks.5.2.conv.bias": (640,),
    "output_blocks.8.0.in_layers.2.weight": (320, 640, 3, 3),
    "out.0.weight": (320,),
    "out.2.weight": (4, 320, 3, 3),
}


def pair(config: UNetConfig) -> tuple[UNet, torch.nn.Module]:
    """Our network and the oracle, with equal weights in separate storage."""
    torch.manual_seed(0)
    ours = trained_looking(UNet(config))
    theirs = diffusers_unet(config)
    theirs.load_state_dict(to_diffusers(ours.state_dict(), config))
    return ours, theirs


@pytest.mark.parametrize(
    ("config", "parameters", "tensors"),
    [
        (UNetConfig.sdxl(), 2_567_463_684, 1_680),  # S Tab. 1: 2.6B
        (UNetConfig.refiner(), 2_259_526_660, 1_220),  # of diffusers' network, see the next test
    ],
    ids=["sdxl", "refiner"],
)
def test_full_size_has_the_published_tensors(config: UNetConfig, parameters: int, tensors: int) -> None:
    start = time.perf_counter()
    with torch.device("meta"):
        state = UNet(config).state_dict()
    assert time.perf_counter() - start < 10  # seconds; a preset is checked this way before every run
    assert sum(tensor.numel() for tensor in state.values()) == parameters
    assert len(state) == tensors
    with torch.device("meta"):
        oracle = diffusers_unet(config).state_dict()
    renamed = to_diffusers(state, config)
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in oracle.items()}


def test_keys_are_those_of_the_published_file() -> None:
    with torch.device("meta"):
        state = UNet(UNetConfig.sdxl()).state_dict()
    assert {key: tuple(state[key].shape) for key in PUBLISHED_KEYS} == PUBLISHED_KEYS


def test_tiny_is_small_and_fits_the_tiny_text_encoders() -> None:
    config = UNetConfig.tiny()
    assert config.context_dim == 32 + 64
    assert config.vector_dim == 64 + 6 * 256
    assert sum(p.numel() for p in UNet(config).parameters()) < 5_000_000


@settings(max_examples=12)
@given(strategies.unet_configs(SIZES * SIZE_FEATURES), strategies.sides(), strategies.sides())
def test_output_and_gradients_equal_diffusers(config: UNetConfig, height: int, width: int) -> None:
    ours, theirs = pair(config)
    call = inputs(config, height, width)
    mine, oracle = call.ours(ours), call.theirs(theirs)
    assert mine.shape == (2, config.out_channels, height, width)
    assert relative_error(mine, oracle) <= NETWORK_FLOAT32

    ours, theirs, call = (
        ours.double(),
        theirs.double(),
        call.to(torch.float64),
    )  # gradients of float32 are noisy
    upstream = torch.randn(oracle.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    call.ours(ours).backward(upstream)
    call.theirs(theirs).backward(upstream)
    gradients = to_diffusers({name: p.grad for name, p in ours.named_parameters()}, config)
    scale = max(p.grad.abs().max() for p in theirs.parameters())
    for name, parameter in theirs.named_parameters():
        assert (gradients[name] - parameter.grad).abs().max() <= NETWORK_FLOAT64 * scale, name


@pytest.mark.parametrize("size", [(5, 12), (7, 9), (1, 1), (1, 9), (4, 16), (8, 8), (3, 2)])
def test_any_latent_size_equals_diffusers(size: tuple[int, int]) -> None:
    ours, theirs = pair(SMALL)
    call = inputs(SMALL, *size)
    with torch.no_grad():
        assert relative_error(call.ours(ours), call.theirs(theirs)) <= NETWORK_FLOAT32


@settings(max_examples=12)
@given(strategies.unet_configs(SIZES * SIZE_FEATURES), strategies.sides(), strategies.sides())
def test_bfloat16_is_as_near_to_float64_as_diffusers(config: UNetConfig, height: int, width: int) -> None:
    ours, theirs = pair(config)
    call = inputs(config, height, width, batch=4)
    with torch.no_grad():
        low = call.to(torch.bfloat16)
        exact = low.to(torch.float64).ours(ours.bfloat16().double())
        mine = low.ours(ours.bfloat16())
        oracle = low.theirs(theirs.bfloat16())
    assert mine.dtype == torch.bfloat16
    allowed = NETWORK_BFLOAT16_FACTOR * relative_error(oracle.double(), exact) + BFLOAT16_ROUNDING
    assert relative_error(mine.double(), exact) <= allowed


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided"])
def test_memory_layout_of_the_inputs_does_not_matter(layout: str) -> None:
    unet, _ = pair(SMALL)
    call = inputs(SMALL, 6, 5)
    x = {
        "channels_last": call.x.contiguous(memory_format=torch.channels_last),
        "transposed": call.x.transpose(2, 3).contiguous().transpose(2, 3),
        "strided": call.x.repeat_interleave(2, dim=3)[..., ::2],
    }[layout]
    with torch.no_grad():
        moved = dataclasses.replace(call, x=x).ours(unet)
        assert relative_error(moved, call.ours(unet)) <= NETWORK_FLOAT32


def test_a_new_network_predicts_zero_and_can_learn() -> None:
    unet = UNet(SMALL)
    out = inputs(SMALL, 4, 4).ours(unet)
    assert torch.equal(out, torch.zeros_like(out))
    (out - 1).square().sum().backward()
    assert unet.out[2].weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", INPUTS)
def test_every_input_changes_the_output(name: str) -> None:
    unet, _ = pair(SMALL)
    call = inputs(SMALL, 4, 4)
    with torch.no_grad():
        before = call.ours(unet)
        after = dataclasses.replace(call, **{name: getattr(call, name).flip(0)}).ours(unet)
    assert relative_error(after, before) > 100 * NETWORK_FLOAT32


def test_samples_of_a_batch_do_not_mix() -> None:
    unet, _ = pair(SMALL)
    call = inputs(SMALL, 4, 6, batch=3)
    alone = dataclasses.replace(call, **{name: getattr(call, name)[1:2] for name in INPUTS})
    with torch.no_grad():
        assert relative_error(alone.ours(unet), call.ours(unet)[1:2]) <= NETWORK_FLOAT32


def test_empty_batch_gives_an_empty_prediction() -> None:
    call = inputs(SMALL, 4, 4)
    empty = dataclasses.replace(call, **{name: getattr(call, name)[:0] for name in INPUTS})
    assert empty.ours(UNet(SMALL)).shape == (0, 4, 4, 4)


def kept_bytes(unet: UNet, call: Inputs) -> tuple[int, torch.Tensor]:
    """Bytes that autograd saves for the backward pass, excluding parameters; and the output."""
    parameters = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call.ours(unet)
    return sum(kept.values()), out


def test_the_kernels_compute_the_same_network_and_keep_less() -> None:
    unet, _ = pair(SMALL)
    call = inputs(SMALL, 8, 8, batch=4)
    outs, gradients, kept = [], [], []
    for backend in ("reference", "kernel"):
        unet.set_ops(load_ops(backend))
        unet.zero_grad()
        size, out = kept_bytes(unet, call)
        out.square().sum().backward()
        outs.append(out.detach())
        kept.append(size)
        gradients.append([p.grad.clone() for p in unet.parameters()])
    assert relative_error(outs[1], outs[0]) <= NETWORK_FLOAT32
    largest = max(gradient.abs().max() for gradient in gradients[0])
    for ours, expected in zip(*gradients, strict=True):
        assert (ours - expected).abs().max() <= NETWORK_FLOAT32 * largest
    assert kept[1] < kept[0]
    assert not torch.equal(outs[0], outs[1]), (
        "the kernels round otherwise: equal bits would say they were not used"
    )


def test_the_kernels_reach_every_block() -> None:
    unet, _ = pair(SMALL)
    called = Counter()

    def counted(name: str, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*arguments: Any) -> torch.Tensor:
            called[name] += 1
            return function(*arguments)

        return call

    ops = load_ops("reference")
    unet.set_ops(
        ops._replace(
            geglu=counted("geglu", ops.geglu),
            group_norm_silu=counted("group_norm_silu", ops.group_norm_silu),
            layer_norm=counted("layer_norm", ops.layer_norm),
        )
    )
    inputs(SMALL, 4, 4).ours(unet)
    blocks = Counter(type(module).__name__ for module in unet.modules())
    assert called == {
        "geglu": blocks["TransformerBlock"],
        "group_norm_silu": 2 * blocks["ResBlock"] + 1,
        "layer_norm": 3 * blocks["TransformerBlock"],
    }


def test_a_new_network_computes_with_the_reference() -> None:
    unet, _ = pair(SMALL)
    call = inputs(SMALL, 4, 6)
    before = call.ours(unet)
    unet.set_ops(load_ops("kernel"))
    unet.set_ops(load_ops("reference"))
    assert torch.equal(call.ours(unet), before)


def test_checkpointing_keeps_less_and_changes_no_gradient() -> None:
    unet, _ = pair(SMALL)
    call = inputs(SMALL, 8, 8, batch=4)
    gradients, kept = [], []
    for how in ("none", "cheap", "full"):
        unet.set_activation_checkpointing(how)
        unet.zero_grad()
        size, out = kept_bytes(unet, call)
        out.square().sum().backward()
        kept.append(size)
        gradients.append([p.grad.clone() for p in unet.parameters()])
    assert kept[1] < kept[0]
    assert kept[2] < kept[0] / 3
    for plain, *again in zip(*gradients, strict=True):
        assert all(torch.equal(plain, gradient) for gradient in again)


def test_checkpointing_is_an_argument_too() -> None:
    blocks = [m for m in UNet(SMALL, activation_checkpointing="full").modules() if hasattr(m, "emb_layers")]
    assert blocks
    assert all(block.activation_checkpointing == "full" for block in blocks)
    with pytest.raises(InputError, match="none, cheap, full"):
        UNet(SMALL, activation_checkpointing=True)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("t", [1217, 1217.0, 999, 0.5])
def test_timesteps_are_not_rounded_by_autocast(t: float) -> None:
    unet = UNet(SMALL)
    seen = []
    unet.time_embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    call = dataclasses.replace(inputs(SMALL, 2, 2, batch=1), t=torch.tensor([t]))
    with torch.autocast("cpu", torch.bfloat16):
        out = call.ours(unet)
    half = SMALL.channels // 2
    phase = t * torch.exp(torch.arange(half, dtype=torch.float64) * -(torch.log(torch.tensor(1e4)) / half))
    assert out.dtype == torch.float32  # x's
    assert (seen[0][0] - torch.cat([phase.cos(), phase.sin()])).abs().max() <= SINUSOID_FLOAT32


@pytest.mark.parametrize("is_trained", [False, True])
def test_autocast_casts_text_states_once_unless_they_are_trained(is_trained: bool) -> None:
    """Every block's keys and values would cast them anew, to the same bits; gradients of them add up in float32."""
    unet = trained_looking(UNet(SMALL))
    given: list[torch.Tensor] = []
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    call = inputs(SMALL, 4, 4)
    call = dataclasses.replace(call, context=call.context.requires_grad_(is_trained))
    outs = []
    for context in (call.context, call.context.bfloat16().float()):  # the values that a cast leaves
        with torch.autocast("cpu", torch.bfloat16):
            outs.append(dataclasses.replace(call, context=context).ours(unet))
    assert {x.dtype for x in given} == {torch.float32 if is_trained else torch.bfloat16}
    assert len({id(x) for x in given}) == 2
    assert torch.equal(*outs)
    given.clear()
    call.ours(unet)
    assert {x.dtype for x in given} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_timesteps_in_16_bits_are_refused(dtype: torch.dtype) -> None:
    call = inputs(SMALL, 2, 2)
    with pytest.raises(InputError, match=str(dtype)):
        dataclasses.replace(call, t=call.t.to(dtype)).ours(UNet(SMALL))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("x", (2, 3, 4, 4)),
        ("x", (4, 4, 4)),
        ("x", ()),
        ("x", (2, 4, 0, 4)),
        ("t", ()),
        ("t", (1,)),
        ("t", (2, 1)),
        ("context", (2, 7, 5)),
        ("context", (2, 6)),
        ("context", (2, 0, 6)),
        ("context", (1, 7, 6)),
        ("vector", (2, 52)),
        ("vector", (3, 53)),
        ("vector", (53,)),
    ],
)
def test_wrong_shapes_are_named(name: str, shape: tuple[int, ...]) -> None:
    arguments = {"x": (2, 4, 4, 4), "t": (2,), "context": (2, 7, 6), "vector": (2, 53)} | {name: shape}
    tensors = {key: torch.zeros(size) for key, size in arguments.items()}
    with pytest.raises(InputError, match=r"UNet\.forward"):
        UNet(SMALL)(**tensors)


@pytest.mark.parametrize("name", ["x", "context", "vector"])
def test_whole_number_tensors_are_refused(name: str) -> None:
    tensors = {
        "x": torch.zeros(2, 4, 4, 4),
        "t": torch.zeros(2),
        "context": torch.zeros(2, 7, 6),
        "vector": torch.zeros(2, 53),
    }
    tensors[name] = tensors[name].long()
    with pytest.raises(InputError, match=f"{name} has dtype torch.int64"):
        UNet(SMALL)(**tensors)


def test_the_first_level_may_be_wider_than_the_sinusoid() -> None:
    config = dataclasses.replace(SMALL, channel_mult=(2, 1, 3), transformer_depth=(1, 0, 0))
    assert inputs(config, 5, 3).ours(trained_looking(UNet(config))).shape == (2, 4, 5, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 0}, "channels = 0"),
        ({"channels": -8}, "channels = -8"),
        ({"channels": 8.0}, "channels = 8.0"),
        ({"channels": True}, "channels = True"),
        ({"channels": 7, "groups": 1, "head_dim": 7}, "must be even"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"channel_mult": (1, 0, 2)}, "channel_mult"),
        ({"channel_mult": (1, 2)}, "differ in length"),
        ({"channel_mult": 3}, "channel_mult"),
        ({"transformer_depth": (0, -1, 2)}, "transformer_depth"),
        ({"transformer_depth": "012"}, "transformer_depth"),
        ({"middle_depth": 0}, "middle_depth"),
        ({"res_blocks": 0}, "res_blocks"),
        ({"groups": 3}, "groups = 3"),
        ({"head_dim": 5}, "head_dim = 5"),
        ({"context_dim": 0}, "context_dim"),
        ({"vector_dim": 0}, "vector_dim"),
    ],
)
def test_impossible_configs_are_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SMALL, **change)


def test_config_takes_the_lists_of_toml_and_json() -> None:
    assert dataclasses.replace(SMALL, channel_mult=[1, 2, 3], transformer_depth=[0, 1, 2]) == SMALL
