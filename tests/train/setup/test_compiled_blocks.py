"""Compiled blocks: how many graphs, that none falls back, and that they compute what the blocks say."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch._dynamo.testing
from torch.fx.experimental import _config as symbols

from refimpl.data.buckets import PRESETS
from refimpl.errors import InputError
from refimpl.model.attention import TransformerBlock
from refimpl.model.attention_options import transformers
from refimpl.model.blocks import ResBlock
from refimpl.model.config import Recompute
from refimpl.model.dot_product import dot_product
from refimpl.model.lora.adapters import add_lora
from refimpl.model.unet import UNet, UNetConfig
from refimpl.run.presets import load_config, preset_names
from refimpl.train.setup import compiled_blocks
from refimpl.train.setup.compiled_blocks import (
    MOST_GRAPHS,
    check_compiler,
    compile_blocks,
    static_levels,
    tokens,
    training_sizes,
)
from tests.model.diffusers_unet import trained_looking
from tests.tolerances import BFLOAT16_ROUNDING, EAGER_ERRORS, NETWORK_BFLOAT16_FACTOR, NETWORK_FLOAT32
from tests.train import runs
from tests.train.processes import run_ranks

CPU = torch.device("cpu")
NARROW = UNetConfig(
    channels=8, channel_mult=(1, 2, 4), transformer_depth=(0, 1, 1), middle_depth=1, res_blocks=2, head_dim=8,
    context_dim=6, vector_dim=12, groups=4,
)  # fmt: skip
TWO_LEVELS = UNetConfig(
    channels=8, channel_mult=(1, 2), transformer_depth=(0, 1), middle_depth=1, res_blocks=1, head_dim=8,
    context_dim=6, vector_dim=12, groups=4,
)  # fmt: skip
SMALL = replace(TWO_LEVELS, channel_mult=(1,), transformer_depth=(1,))
GRAPHS = {
    TWO_LEVELS: 7 + 1,
    SMALL: 2 + 1,
}  # pairs of channels of residual blocks; the transformers have one width
ANEW = 1  # AOTAutograd begins a graph anew where a float of the first trace turns out to be fixed
Counter = torch._dynamo.testing.CompileCounterWithBackend


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Dynamo's settings and graphs are put back."""
    torch._dynamo.reset()
    duck = symbols.use_duck_shape
    with torch._dynamo.config.patch({}):
        yield
    symbols.use_duck_shape = duck
    torch._dynamo.reset()


def counted(monkeypatch: pytest.MonkeyPatch, backend: str = "eager") -> Any:
    counter = Counter(backend)
    monkeypatch.setattr(compiled_blocks, "BACKEND", counter)
    return counter


def inputs(
    images: int, height: int, width: int, chunks: int = 1, device: str = "cpu"
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(height)
    x = torch.randn(images, 4, height, width, generator=generator)
    t = torch.randint(0, 1000, (images,), generator=generator)
    context = torch.randn(images, 7 * chunks, 6, generator=generator)
    vector = torch.randn(images, 12, generator=generator)
    return tuple(tensor.to(device) for tensor in (x, t, context, vector))


def gradients(unet: UNet, given: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """The output and the gradient of every trained parameter."""
    unet.zero_grad()
    out = unet(*given)
    out.square().mean().backward()
    return [out.detach(), *(p.grad.clone() for p in unet.parameters() if p.grad is not None)]


def exact_gradients(unet: UNet, given: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """The same in float64, with attention's matrix written out: flash attention on the CPU errs more than float32."""
    for module in unet.modules():
        if isinstance(module, TransformerBlock):
            module.attn1.dot_product = module.attn2.dot_product = dot_product("math")
    return gradients(unet.double(), tuple(x.double() if x.is_floating_point() else x for x in given))


def error(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The largest difference, relative to the largest gradient, or to the largest value of the tensor itself."""
    scale = max(float(x.abs().max()) for x in other[1:])
    pairs = zip(one, other, strict=True)
    return max(float((a - b).abs().max()) / max(scale, float(b.abs().max())) for a, b in pairs)


def assert_near(one: list[torch.Tensor], other: list[torch.Tensor], more: float = 0.0) -> None:
    assert error(one, other) <= NETWORK_FLOAT32 + more


def small(checkpointing: Recompute = "none", config: UNetConfig = SMALL) -> UNet:
    torch.manual_seed(0)
    return trained_looking(UNet(config, checkpointing))


# --- how many ---


@pytest.mark.parametrize(
    ("buckets", "graphs"), [("sdxl", 27), pytest.param("novelai_v3", 25, marks=pytest.mark.slow)]
)
def test_all_buckets_need_at_most_30_graphs(
    buckets: str, graphs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network with SDXL's pairs of channels and levels, narrower, on the meta device: nothing is computed."""
    counter = counted(monkeypatch)
    sizes = [(8, height // 8, width // 8) for width, height in PRESETS[buckets]]
    # A square first: its sides are equal, and later ones are not.
    sizes.sort(key=lambda size: size[1] != size[2])
    with torch.device("meta"):
        unet = UNet(NARROW)
    compile_blocks(unet, sizes)
    assert static_levels(unet, sizes) == {2}
    for number, size in enumerate(sizes):
        unet(*inputs(*size, chunks=1 + number % 3, device="meta"))
        assert counter.frame_count <= graphs  # said at the first one too many
    assert counter.frame_count == graphs <= MOST_GRAPHS


@pytest.mark.parametrize(
    ("config", "buckets", "levels"),
    [
        (UNetConfig.sdxl(), "sdxl", {2}),  # 12 + 14 + 1
        (UNetConfig.sdxl(), "novelai_v3", {2}),  # 12 + 12 + 1
        (UNetConfig.refiner(), "novelai_v1", {2, 3}),  # 12 + 7 + 7 + 1
        (UNetConfig.sdxl(), "one", {1, 2}),
    ],
)
def test_the_deepest_levels_get_graphs_of_fixed_shapes(
    config: UNetConfig, buckets: str, levels: set[int]
) -> None:
    sizes = [(8, h // 8, w // 8) for w, h in PRESETS.get(buckets, [(1024, 1024)])]
    with torch.device("meta"):
        unet = UNet(config)
    assert static_levels(unet, sizes) == levels


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_plans_at_most_30_graphs(name: str) -> None:
    """One for each pair of channels; of a level's transformers one for each number of tokens, or one for all."""
    config = load_config(name)
    with torch.device("meta"):
        unet = UNet(config.unet)
    sizes = training_sizes(config)
    blocks = [block for block in unet.modules() if isinstance(block, ResBlock)]
    shapes = [block.in_layers.get_parameter("2.weight").shape for block in blocks]
    static = static_levels(unet, sizes)
    graphs = len({(shape[0], shape[1]) for shape in shapes})
    for level in {level for _, level in transformers(unet)}:
        own = {(images, tokens(height, width, level)) for images, height, width in sizes}
        graphs += len(own) if level in static else 1
    assert static
    assert graphs <= MOST_GRAPHS


def test_more_batch_sizes_leave_no_fixed_shapes() -> None:
    with torch.device("meta"):
        unet = UNet(NARROW)
    sizes = [(images, h // 8, w // 8) for images in (2, 4) for w, h in PRESETS["sdxl"]]
    assert static_levels(unet, sizes) == set()


@pytest.mark.parametrize(
    ("level", "height", "width", "count"), [(0, 5, 3, 15), (1, 5, 3, 6), (2, 5, 3, 2), (2, 128, 128, 1024)]
)
def test_tokens_round_up(level: int, height: int, width: int, count: int) -> None:
    assert tokens(height, width, level) == count


def test_the_sizes_are_those_of_every_stage() -> None:
    config = load_config("sdxl_base")
    sizes = training_sizes(config)
    assert {(8, 32, 32), (8, 64, 64), (8, 128, 128), (8, 104, 152)} <= sizes
    assert len(sizes) == 2 + 40
    budget = replace(config, train=replace(config.train, pixel_budget=2 * 1024**2))
    assert {(32, 32, 32), (8, 64, 64), (2, 128, 128)} <= training_sizes(budget)


# --- what they compute ---


@pytest.mark.parametrize(
    ("config", "checkpointing", "kernel"),
    [
        (TWO_LEVELS, "none", "torch"),
        (SMALL, "cheap", "torch"),
        pytest.param(SMALL, "full", "math", marks=pytest.mark.slow),
        (SMALL, "full", "flash"),
    ],
)
def test_a_compiled_network_computes_the_same(
    config: UNetConfig, checkpointing: Recompute, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = counted(monkeypatch, "aot_eager")
    unet, given = small(checkpointing, config), inputs(2, 9, 6)
    for module in unet.modules():
        if isinstance(module, TransformerBlock):
            module.attn1.dot_product = module.attn2.dot_product = dot_product(kernel)
    plain = gradients(unet, given)
    exact = exact_gradients(small(checkpointing, config), given)
    keys = list(unet.state_dict())
    compile_blocks(unet, [(2, 9, 6)])
    assert_near(gradients(unet, given), exact, EAGER_ERRORS * error(plain, exact))
    assert GRAPHS[config] <= counter.frame_count <= GRAPHS[config] + ANEW
    assert list(unet.state_dict()) == keys
    assert [name for name, _ in unet.named_parameters()] == keys


def test_adapters_are_compiled_with_their_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = counted(monkeypatch, "aot_eager")
    unet, given = small(), inputs(2, 9, 6)
    add_lora(unet, ["*.transformer_blocks.*"], 2, 1.0)
    for name, parameter in unet.named_parameters():
        if "lora_up" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    plain = gradients(unet, given)
    compile_blocks(unet, [(2, 9, 6)])
    assert_near(gradients(unet, given), plain)
    assert GRAPHS[SMALL] <= counter.frame_count <= MOST_GRAPHS


def test_autocast_is_compiled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch, "aot_eager")
    unet, given = small(), inputs(2, 8, 8)
    exact = unet(*given)
    with torch.autocast("cpu", torch.bfloat16):
        plain = unet(*given)
        compile_blocks(unet, [(2, 8, 8)])
        compiled = unet(*given)
    error, rounding = (plain - exact).abs().max(), BFLOAT16_ROUNDING * exact.abs().max()
    assert error > 0
    assert (compiled - exact).abs().max() <= NETWORK_BFLOAT16_FACTOR * error + rounding
    assert not torch.equal(compiled, exact)


def test_without_gradients_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = counted(monkeypatch)
    unet, given = small(), inputs(2, 8, 8)
    with torch.no_grad():
        plain = unet(*given)
        compile_blocks(unet, [(2, 8, 8)])
        assert torch.equal(unet(*given), plain)
    assert counter.frame_count == 0


def test_every_block_and_nothing_else_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch)
    unet = small()
    compile_blocks(unet, [(2, 8, 8)])
    for module in unet.modules():
        assert ("forward" in vars(module)) == isinstance(module, ResBlock | TransformerBlock)


# --- what is refused ---


def test_a_graph_too_many_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch)
    monkeypatch.setattr(compiled_blocks, "RECOMPILE_LIMIT", 3)
    unet = small(config=TWO_LEVELS)
    compile_blocks(unet, [(2, 8, 8)])
    with pytest.raises(InputError, match=r"needs more than 3 graphs of ResBlock; use fewer batch sizes"):
        unet(*inputs(2, 8, 8))


def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(compiled_blocks, "BACKEND", broken)
    with pytest.raises(InputError, match=r"cannot compile for cpu here: .*no working C\+\+ compiler"):
        check_compiler(CPU)
    monkeypatch.setattr(compiled_blocks, "BACKEND", "eager")
    check_compiler(CPU)


# --- whole runs ---


def test_a_run_with_compiled_blocks_ends_near_the_plain_one(
    run: Callable[..., Path], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoints have the same names, and the run may go on without the compiler."""
    counted(monkeypatch, "aot_eager")
    run(train={"compile": "blocks", "steps": 2})
    compiled = run(train={"resume": True})
    one, other = (runs.checkpoint(folder, 4) for folder in (trained, compiled))
    assert {name: sorted(state) for name, state in one.items()} == {
        name: sorted(state) for name, state in other.items()
    }
    losses = [[row["loss"] for row in runs.rows(folder) if "loss" in row] for folder in (trained, compiled)]
    for a, b in zip(*losses, strict=True):
        assert a == pytest.approx(b, rel=NETWORK_FLOAT32)


def compiled_eagerly(arguments: list[str]) -> None:
    """What a rank does in the test below: trains with graphs that torch runs operation by operation."""
    from refimpl.commands.train import train_command

    compiled_blocks.BACKEND = "aot_eager"
    train_command(arguments)


@pytest.mark.slow
def test_compiled_blocks_train_on_two_ranks(root: Path, tmp_path: Path) -> None:
    train = {"compile": "blocks", "batch_size": 2, "steps": 2, "activation_checkpointing": "cheap"}
    toml = runs.write_toml(root, tmp_path / "run.toml", tmp_path / "run", train=train)
    assert run_ranks([toml], 2, tmp_path / "output", compiled_eagerly) == [0, 0]
    assert [row["step"] for row in runs.rows(tmp_path / "run") if "loss" in row] == [1, 2]


@pytest.mark.slow
def test_inductor_compiles_the_blocks() -> None:
    """Minutes of C++ on two cores."""
    unet, given = small(), inputs(2, 9, 6)
    plain = gradients(unet, given)
    compile_blocks(unet, [(2, 9, 6)])
    assert_near(gradients(unet, given), plain)
