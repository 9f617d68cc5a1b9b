"""What lies between a batch and the UNet: its draws, its way to the device, and what both may cost."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from refimpl.diffusion.philox import Purpose, draw_key, keyed_uniform
from refimpl.errors import InputError
from refimpl.latents.vae import VAE
from refimpl.model.lora.adapters import adapted_layers
from refimpl.model.lora.dropout import rank_dropout
from refimpl.model.unet import UNet
from refimpl.ops import load_ops
from refimpl.run.stage import read_stage
from refimpl.text import conditioning
from refimpl.text.conditioning import size_features
from refimpl.train import loop, prefetch, step
from refimpl.train.loop import network_inputs, train
from refimpl.train.prefetch import ALIGNMENT, on_device, packed, prefetched, tensors_of
from refimpl.train.quarantine import Quarantine
from refimpl.train.setup.out_folder import run_folder
from refimpl.train.setup.prepare import Prepared, prepare
from refimpl.train.step import denoising_loss
from refimpl.train.step_plan import MicroBatch, plan_steps
from tests.train import caches, runs

Run = Callable[..., Path]

MOST_KERNELS = 20  # between a batch and the UNet, the networks in between not counted
META = torch.device("meta")  # a device that is not the CPU, whose tensors have no values to wait for
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "_reshape_alias", "detach"}
WAITING = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "is_nonzero"}
ADAPTERS = {"rank": 2, "alpha": 4.0, "targets": ["*.attn1.to_q", "*.attn2.to_k"], "dropout": 0.5}


class Counting(TorchDispatchMode):
    """Counts what would launch a kernel on a device, and what would make the host wait for it."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.is_on = device, False
        self.kernels: Counter[str] = Counter()
        self.waits: list[str] = []
        self.towers: Counter[str] = Counter()  # calls of the networks that are passed over

    def begin(self) -> None:
        """Counts from here on, from zero."""
        self.is_on, self.kernels, self.waits = True, Counter(), []

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Counts nothing within the context."""
        self.is_on, was_on = False, self.is_on
        try:
            yield
        finally:
            self.is_on = was_on

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        result = func(*args, **options)
        if not self.is_on:
            return result
        name = func.overloadpacket.__name__
        given = [x for x in tree_leaves((args, options)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        devices = {x.device.type for x in (*given, *made)}
        if self.device.type not in devices:
            return result
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        is_copy = len(devices) > 1
        if name in WAITING or (is_copy and not (options.get("non_blocking") or args[2:3] == (True,))):
            self.waits.append(name)
        if not is_view and name not in FREE:
            self.kernels[name] += 1
        return result


@pytest.fixture
def counting(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    """A counter, switched on, that passes over what the autoencoder and the towers compute."""
    counter = Counting(getattr(request, "param", torch.device("cpu")))
    for place, name in (
        (VAE, "encode"),
        (conditioning, "penultimate_state"),
        (conditioning, "penultimate_and_pooled"),
        (step, "embed_images"),
    ):
        original = getattr(place, name)

        def network(*arguments: Any, original: Any = original, name: str = name, **options: Any) -> Any:
            counter.towers[name] += 1
            with counter.paused():
                return original(*arguments, **options)

        monkeypatch.setattr(place, name, network)
    with counter:
        yield counter


def prepared_run(root: Path, tmp_path: Path, /, **sections: Any) -> tuple[Any, Prepared, Path]:
    config = runs.config(root, tmp_path / "run", **sections)
    folder = run_folder(config, "test", runs.ALONE)
    return config, prepare(config, folder, runs.ALONE), folder


def micro_batches(config: Any, prepared: Prepared, tmp_path: Path) -> list[MicroBatch]:
    steps = plan_steps(
        config, prepared.stages, 0, runs.ALONE, Quarantine(tmp_path, runs.ALONE), prepared.latents,
        rank_dropout(prepared.model.unet),
    )  # fmt: skip
    return [batch for step in steps for batch in step.batches]


@pytest.mark.parametrize("kind", ["images", "dropped", "cached", "adapters", "scores"])
def test_the_loop_launches_little_and_waits_for_nothing_before_the_unet(
    kind: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path, counting: Counting
) -> None:
    """Counted in the loop itself, from the batch's arrival to the UNet's call, at every step of the run."""
    sections: dict[str, Any] = {"train": {"backend": "kernel", "accumulate": 2, "batch_size": 2}}
    if kind == "dropped":
        sections["train"] |= {"caption_dropout": 0.5}
        sections["text"] = {"null": "empty"}
    elif kind == "cached":
        cache = caches.write(caches.toml(root, tmp_path, **sections), tmp_path / "cache")
        sections["data"] = {"cache": str(cache)}
    elif kind == "adapters":
        sections |= {"lora": ADAPTERS}
        sections["train"] |= {"init_from": str(trained)}
    elif kind == "scores":
        sections["text"] = {"vector": "score", "towers": "tiny"}
        sections["unet"] = {"vector_dim": 64 + 5 * 256}
    found: list[tuple[int, list[str]]] = []
    inputs, forward = loop.network_inputs, UNet.forward

    def begin(*arguments: Any) -> Any:
        counting.begin()
        return inputs(*arguments)

    def end(self: UNet, *arguments: Any) -> Any:
        if counting.is_on:
            found.append((counting.kernels.total(), counting.waits))
        counting.is_on = False
        return forward(self, *arguments)

    config, prepared, folder = prepared_run(root, tmp_path, **sections)
    monkeypatch.setattr(loop, "network_inputs", begin)
    monkeypatch.setattr(UNet, "forward", end)
    train(config, folder, prepared, runs.ALONE)
    assert len(found) == 8
    assert [waits for _, waits in found if waits] == []
    assert max(kernels for kernels, _ in found) <= MOST_KERNELS


@pytest.mark.parametrize("counting", [META], indirect=True)
@pytest.mark.parametrize("kind", ["images", "cached", "adapters"])
def test_nothing_blocks_on_the_way_to_another_device(
    kind: str, root: Path, tmp_path: Path, trained: Path, counting: Counting
) -> None:
    """A batch goes over in one copy that waits for nothing, and each tower is called once for all its captions."""
    sections: dict[str, Any] = {"train": {"batch_size": 8, "steps": 2, "caption_dropout": 0.5}}
    if kind == "cached":
        cache = caches.write(caches.toml(root, tmp_path, **sections), tmp_path / "cache")
        sections["data"] = {"cache": str(cache)}
    elif kind == "adapters":
        sections |= {"lora": ADAPTERS}
        sections["train"] |= {"init_from": str(trained)}
    config, prepared, _ = prepared_run(root, tmp_path, **sections)
    batches = micro_batches(config, prepared, tmp_path)
    long = "red " * 100
    batches[0] = replace(batches[0], captions=[*batches[0].captions[:-1], long])
    prepared.model.to(META)
    if kind == "cached":
        prepared.text_states._device = META  # pyright: ignore
    ops, dropout = load_ops("kernel"), rank_dropout(prepared.model.unet)
    prepared.text_states.null(prepared.model.text.null)  # once in a run
    for batch in batches:
        counting.begin()
        there = on_device(batch, META)
        assert dict(counting.kernels) == {"_to_copy": 1}
        counting.begin()
        counting.towers.clear()
        latents, conditions = network_inputs(prepared, there)
        if there.kept is not None:
            dropout.apply(there.kept)

        def network(x_t: Tensor, *rest: Tensor) -> Tensor:
            counting.is_on = False
            assert all(x.device == META for x in (x_t, *rest))
            return x_t

        levels = there.alpha, there.sigma
        denoising_loss(network, prepared.model, conditions, latents, there.noise, there.t, there.weight, 0.0, ops,
                       levels=levels)  # fmt: skip
        assert counting.waits == []
        assert counting.kernels.total() <= MOST_KERNELS
        called = counting.towers
        known = kind == "cached" and long not in batch.captions
        assert (called["penultimate_state"], called["penultimate_and_pooled"]) == (
            (0, 0) if known else (1, 1)
        )


@pytest.mark.parametrize("kind", ["images", "adapters"])
def test_draws_are_those_of_the_formulas(kind: str, root: Path, tmp_path: Path, trained: Path) -> None:
    """Bit for bit, each with a key of its own, as they were once drawn in the loop."""
    sections: dict[str, Any] = {
        "train": {"seed": 9, "caption_dropout": 0.4, "steps": 6},
        "diffusion": {"first_timestep": 100, "last_timestep": 899},
    }
    if kind == "adapters":
        sections["lora"] = ADAPTERS
        sections["train"] |= {"init_from": str(trained)}
    config, prepared, _ = prepared_run(root, tmp_path, **sections)
    seen = 0
    steps = plan_steps(
        config, prepared.stages, 0, runs.ALONE, Quarantine(tmp_path, runs.ALONE),
        dropout=rank_dropout(prepared.model.unet),
    )  # fmt: skip
    for plan_step in steps:
        names, data = iter(plan_step.names), prepared.stages[0]
        for batch in plan_step.batches:
            rows = [data.index.ids.index(name) for name in islice(names, len(batch.captions))]
            ids, visit = data.draw_ids[rows], plan_step.epoch
            u = keyed_uniform(draw_key(9, ids, visit, Purpose.TIMESTEP), 1)[:, 0]
            chance = keyed_uniform(draw_key(9, ids, visit, Purpose.CAPTION_DROPOUT), 1)[:, 0]
            t = 100 + (u * 800).long()
            alpha, sigma = prepared.model.schedule.at(t)
            weight = (config.diffusion.loss_weights()[t] * data.tag_weights[rows]).float()
            assert torch.equal(batch.t, t)
            assert torch.equal(batch.is_dropped, chance < 0.4)
            assert torch.equal(batch.noise, draw_key(9, ids, visit, Purpose.NOISE))
            assert torch.equal(batch.alpha, alpha)
            assert torch.equal(batch.sigma, sigma)
            assert torch.equal(batch.weight, weight)
            assert batch.weight.dtype == torch.float32
            assert torch.equal(batch.features, size_features(batch.size_ints, batch.scores))
            seen += masks_are_drawn(prepared.model.unet, batch, draw_key(9, ids, visit, Purpose.LORA_DROPOUT))
    assert seen == (6 if kind == "adapters" else 0)


def masks_are_drawn(unet: UNet, batch: MicroBatch, key: Tensor) -> bool:
    """Compares the masks, layer by layer, with their formula; whether there were any."""
    layers = list(adapted_layers(unet).values())
    if not layers:
        assert batch.kept is None
        return False
    ranks = [len(layer.lora_down.weight) for layer in layers]
    assert batch.kept is not None
    rank_dropout(unet).apply(batch.kept)
    for layer, u in zip(layers, keyed_uniform(key, sum(ranks)).split(ranks, dim=1), strict=True):
        assert layer.kept is not None
        assert torch.equal(layer.kept, (u >= 0.5) / (1 - 0.5))
        assert layer.kept.dtype == torch.float32
    return True


def test_a_packed_batch_is_the_batch(root: Path, tmp_path: Path, trained: Path) -> None:
    sections = {"lora": ADAPTERS, "train": {"init_from": str(trained)}}
    config, prepared, _ = prepared_run(root, tmp_path, **sections)
    batch = micro_batches(config, prepared, tmp_path)[0]
    there = on_device(batch, torch.device("cpu"))
    assert there.captions is batch.captions
    assert (there.latents, there.scores) == (None, None)
    before, after = tensors_of(batch), tensors_of(there)
    assert list(before) == [name for name in before if name in after]
    assert len({x.untyped_storage().data_ptr() for x in after.values()}) == 1
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor)
        assert after[name].is_contiguous()


def test_parts_of_a_buffer_are_aligned_and_may_be_empty() -> None:
    tensors = [torch.tensor([True]), torch.empty(2, 3, 0, 0, dtype=torch.uint8), torch.ones(65)]
    buffer, begins = packed(tensors, pinned=False)
    assert begins == [0, ALIGNMENT, ALIGNMENT]
    assert len(buffer) == 3 * ALIGNMENT


def test_on_the_cpu_the_steps_pass_through() -> None:
    planned: list[Any] = [object(), object(), object()]
    left: Any = iter(planned)
    through = prefetched(left, torch.device("cpu"))
    seen = []
    for plan_step in through:
        through.load_next()
        seen.append(plan_step)
        assert len(seen) + left.__length_hint__() == 3  # nothing is read ahead
    assert seen == planned


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for a GPU's streams; what is asked of them, in order."""
    asked: list[str] = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.name = "side" if not asked else "main"

        def wait_stream(self, other: "Stream") -> None:
            asked.append("wait")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: asked.append("record"))

    def copied(batch: MicroBatch, device: torch.device) -> MicroBatch:
        asked.append(f"copy {batch.captions[0]}")
        return batch

    monkeypatch.setattr(prefetch, "on_device", copied)
    return asked


def numbered(root: Path, tmp_path: Path, end: Exception | None = None) -> Iterator[Any]:
    """Three steps whose captions are their numbers, and then what ends them."""
    config = runs.config(root, tmp_path / "run", train={"steps": 1})
    data = [read_stage(config, stage) for stage in config.all_stages()]
    one = next(plan_steps(config, data, 0, runs.ALONE, Quarantine(tmp_path, runs.ALONE)))
    for number in range(3):
        yield replace(one, batches=[replace(one.batches[0], captions=[str(number)])])
    if end is not None:
        raise end


def test_on_a_gpu_the_next_step_is_copied_before_its_turn(root: Path, tmp_path: Path, gpu: list[str]) -> None:
    steps = prefetched(numbered(root, tmp_path), torch.device("cuda"))
    order = []
    for plan_step in steps:
        order += [*(entry for entry in gpu if entry != "record"), f"train {plan_step.batches[0].captions[0]}"]
        assert gpu.count("record") == len(tensors_of(plan_step.batches[0]))
        gpu.clear()
        steps.load_next()
        steps.load_next()  # once is enough
    assert order == ["copy 0", "wait", "train 0", "copy 1", "wait", "train 1", "copy 2", "wait", "train 2"]


def test_a_bad_step_is_reported_when_its_turn_comes(root: Path, tmp_path: Path, gpu: list[str]) -> None:
    steps = prefetched(numbered(root, tmp_path, InputError("too many bad images")), torch.device("cuda"))
    through = iter(steps)
    for _ in range(3):
        next(through)
        steps.load_next()
    with pytest.raises(InputError, match="too many bad images"):
        next(through)


def test_the_loop_loads_the_next_step_before_it_waits_for_this_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    class Told:
        def __init__(self, steps: Any, device: torch.device) -> None:
            self.steps = steps

        def __iter__(self) -> Iterator[Any]:
            return self.steps

        def load_next(self) -> None:
            order.append("load")

    def told(*arguments: Any) -> Any:
        order.append("update")
        return updated(*arguments)

    updated = loop.update
    monkeypatch.setattr(loop, "prefetched", Told)
    monkeypatch.setattr(loop, "update", told)
    runs.go(runs.config(root, tmp_path / "run", train={"steps": 2}))
    assert order == ["load", "update"] * 2


@pytest.mark.parametrize("reduction", ["fast", "ordered"])
@pytest.mark.parametrize("train_table", [{"accumulate": 4, "batch_size": 1}, {"pixel_budget": 3 * 2048}])
def test_the_backward_pass_finds_the_gradient_that_the_forward_pass_made(
    reduction: str, train_table: dict[str, int], root: Path, tmp_path: Path
) -> None:
    """The kernel compares bits: every image's incoming gradient is the expected one, so nothing is computed twice."""
    hits: list[bool] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.refimpl.v_loss_correct_.default:
                incoming, expected = args[-2:]
                hits.extend((incoming == torch.tensor(expected, dtype=torch.float32)).tolist())
            return func(*args, **(kwargs or {}))

    table = {"backend": "kernel", "reduction": reduction, **train_table}
    with Watching():
        runs.go(runs.config(root, tmp_path / "run", train=table))
    assert len(hits) >= 4
    assert all(hits)
