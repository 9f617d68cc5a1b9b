"""Ranks: the same bits in `ordered`, the same numbers in `fast`, and an error of one that does not hang the others.

N §4; the global batch is 4 images in every test, whoever computes them.
"""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given

from refimpl.data.images.decode import BadImage
from refimpl.errors import InputError
from refimpl.run import world as world_file
from refimpl.run.world import NotJSON, World, join_world, json_value, leave_world
from tests import strategies
from tests.tolerances import FLOAT32_ROUNDING, NETWORK_FLOAT32
from tests.train import runs
from tests.train.processes import run_ranks

PLAIN = {"epsilon": 1.0, "learning_rate": 0.1, "weight_decay": 0.0}  # AdamW as good as linear in the gradient
Start = Callable[..., Path]


@pytest.fixture
def start(root: Path, tmp_path: Path) -> Start:
    """start(world, **sections): trains on `world` processes, which must all end with 0."""

    def make(world: int, **sections: Any) -> Path:
        name = f"run-{len(list(tmp_path.glob('*.toml')))}"
        arguments = [runs.write_toml(root, tmp_path / f"{name}.toml", tmp_path / name, **sections)]
        codes = run_ranks(arguments, world, tmp_path / f"{name}-output")
        printed = "\n".join(p.read_text() for p in sorted((tmp_path / f"{name}-output").iterdir()))
        assert codes == [0] * world, printed
        return tmp_path / name

    return make


def test_ordered_gives_the_same_bits_on_1_2_and_4_ranks(start: Start) -> None:
    results = {}
    for world, accumulate in ((1, 4), (2, 2), (4, 1)):
        train = {"reduction": "ordered", "batch_size": 1, "accumulate": accumulate, "steps": 2}
        results[world] = runs.checkpoint(start(world, train=train), 2)
    assert not runs.differing(results[1], results[2])
    assert not runs.differing(results[1], results[4])


def test_fast_agrees_with_one_rank_to_rounding(start: Start) -> None:
    folders = [
        start(world, train={"batch_size": 4 // world, "steps": 3}, optimizer=PLAIN) for world in (1, 2)
    ]
    one, two = (runs.checkpoint(folder, 3) for folder in folders)
    assert runs.farthest(one["unet"], two["unet"]) <= FLOAT32_ROUNDING
    logged = [[row["loss"] for row in runs.rows(folder) if "loss" in row] for folder in folders]
    assert logged[1] == pytest.approx(logged[0], rel=NETWORK_FLOAT32)  # of all ranks, not of rank 0


def test_paper_plan_trains_on_two_ranks(start: Start) -> None:
    """Each rank has buckets of its own, so the shapes of a step differ (N §4.1.2)."""
    run = start(2, data={"plan": "paper"}, train={"batch_size": 2})
    assert [row["step"] for row in runs.rows(run) if "loss" in row] == [1, 2, 3, 4]


def test_a_run_may_go_on_with_other_ranks_on_the_same_batches(
    start: Start, root: Path, tmp_path: Path
) -> None:
    whole = start(1, train={"reduction": "ordered", "batch_size": 2, "accumulate": 2})
    half = start(1, train={"reduction": "ordered", "batch_size": 2, "accumulate": 2, "keep_checkpoints": 0})
    shutil.rmtree(half / "checkpoints" / "step-00000004")
    options = ["--train.resume", "--train.out", str(half)]
    toml = runs.write_toml(
        root, tmp_path / "a.toml", half, train={"reduction": "ordered", "batch_size": 2, "accumulate": 1}
    )
    assert run_ranks([toml, *options, "--train.micro-batches", "1"], 1, tmp_path / "one") == [2]
    assert "train.micro_batches: the run has 2, now 1" in (tmp_path / "one" / "rank0.txt").read_text()
    assert run_ranks([toml, *options], 3, tmp_path / "three") == [2, 2, 2]
    for rank in range(3):
        printed = (tmp_path / "three" / f"rank{rank}.txt").read_text()
        assert "train.micro_batches 2 are fewer than the 3 ranks" in printed
    assert run_ranks([toml, *options], 2, tmp_path / "two") == [0, 0]
    assert not runs.differing(runs.checkpoint(whole, 4), runs.checkpoint(half, 4))


def test_rank_0s_problem_ends_every_rank_with_its_message(root: Path, tmp_path: Path) -> None:
    """No autoencoder: only rank 0 would make one, the others wait for it."""
    toml = runs.write_toml(root, tmp_path / "a.toml", tmp_path / "run", latents={"weights": ""})
    assert run_ranks([toml], 2, tmp_path / "output") == [2, 2]
    for rank in range(2):
        printed = (tmp_path / "output" / f"rank{rank}.txt").read_text()
        assert "no autoencoder: give latents.weights" in printed
        assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()


def test_one_ranks_problem_does_not_hang_the_others(root: Path, tmp_path: Path) -> None:
    """An image whose pixels are damaged is met by the rank that loads it, and all stop after the same step."""
    shutil.copytree(root, tmp_path / "data")
    damaged = sorted((tmp_path / "data" / "train").glob("*.png"))[3]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    toml = runs.write_toml(tmp_path / "data", tmp_path / "a.toml", tmp_path / "run", train={"batch_size": 2})
    codes = run_ranks([toml], 2, tmp_path / "output")
    printed = [(tmp_path / "output" / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert codes == [2, 2]
    assert all(f"the last is {damaged}: can't be decoded" in text for text in printed)
    assert sum(f"replaced by another image from its bucket: {damaged}" in text for text in printed) == 1
    assert not any("has stopped" in text for text in printed)
    assert "Traceback" not in "".join(printed)


def test_ranks_after_a_restart_read_no_address_of_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's store outlives the ranks, and a rank that reads a dead one's address waits for it."""
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    stores: list[dist.Store] = []
    monkeypatch.setattr(dist, "init_process_group", lambda *_, store, **__: stores.append(store))
    monkeypatch.setattr(world_file, "start_heartbeat", lambda *_: None)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(agent.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for attempt in ("0", "0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        join_world("cpu")
    first, its_peer, restarted = stores
    first.set("cpu/0", "an address")
    assert its_peer.check(["cpu/0"])
    assert not restarted.check(["cpu/0"])


def test_alone_there_is_nobody_to_wait_for() -> None:
    alone = World(0, 1, torch.device("cpu"))
    alone.barrier()
    assert alone.object_from_main(lambda: {"a"}) == {"a"}
    assert alone.mean(torch.ones(2)).tolist() == [1, 1]
    assert alone.on_main(lambda: "b") == "b"


VALUE = {"text": "é", "list": [1, -2.5, None, True, [], {"deep": {}}], "large": 2**80}


def ask_main(arguments: list[str]) -> None:
    """What two ranks do in the test below; each prints what it got."""
    world = join_world("cpu")

    def only_main(value: Any) -> Any:
        assert world.is_main, "the others wait"
        return value

    def refuse() -> None:
        raise InputError("the disk is full; free space")

    assert world.on_main(lambda: only_main(VALUE)) == VALUE
    assert world.on_main(lambda: only_main(None)) is None
    assert world.object_from_main(lambda: only_main(torch.arange(3))).tolist() == [0, 1, 2]
    with pytest.raises(NotJSON, match=r"\(1, 2\) of type tuple \(at \['a'\]\[1\]\) is no JSON value"):
        world.on_main(lambda: only_main({"a": [0, (1, 2)]}))
    assert world.on_main(lambda: only_main("still in step")) == "still in step"
    print(f"rank {world.rank} agrees")
    try:
        world.on_main(refuse)
    finally:
        leave_world(world)


def test_what_main_returns_or_raises_every_rank_has(tmp_path: Path) -> None:
    assert run_ranks([], 2, tmp_path, ask_main) == [2, 2]
    for rank in range(2):
        printed = (tmp_path / f"rank{rank}.txt").read_text()
        assert f"rank {rank} agrees" in printed
        assert "the disk is full; free space" in printed
        assert "Traceback" not in printed


def test_a_bad_image_of_main_keeps_its_path_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its class takes more than a message, which is all that used to be sent."""
    sent = []
    monkeypatch.setattr(dist, "broadcast_object_list", lambda box, src: sent.append(pickle.dumps(box)))

    def look() -> None:
        raise BadImage("images/a.png", "can't be read", "missing")

    for world in (World(0, 2, torch.device("cpu")), runs.ALONE):
        with pytest.raises(BadImage, match=r"^images/a\.png: can't be read$"):
            world.object_from_main(look)
    ((_, received),) = map(pickle.loads, sent)
    assert (received.path, received.reason, received.kind) == (
        Path("images/a.png"), "can't be read", "missing",
    )  # fmt: skip


@given(strategies.json_values())
def test_what_json_gives_back_is_let_through(value: Any) -> None:
    assert json_value(value) is value
    assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.int64(3), r"of type int64 \(at the top\) is no JSON value"),
        ({"a": [Path("x")]}, r"of type PosixPath \(at \['a'\]\[0\]\)"),
        ({"a": {1: 2}}, r"strings as keys, not 1 \(at \['a'\]\)"),
        ([float("nan")], r"nan of type float \(at \[0\]\)"),
        ((1,), "of type tuple"),
        (torch.ones(1), "of type Tensor"),
    ],
)
def test_what_json_would_change_is_named_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(NotJSON, match=message):
        runs.ALONE.on_main(lambda: value)


def test_unknown_and_absent_devices_are_named() -> None:
    with pytest.raises(InputError, match="device 'tpu' is unknown; use auto, cpu or cuda"):
        join_world("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"torch sees no GPU; use --train.device cpu"):
            join_world("cuda")


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(
        InputError, match=r"^LOCAL_RANK 2 has no GPU of its own: torch sees 2 on this machine; start"
    ):
        join_world("auto")
