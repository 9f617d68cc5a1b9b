"""Which ranks share what, and which divisions no world can form."""

from pathlib import Path
from typing import Any

import pytest
import torch

from refimpl.errors import InputError
from refimpl.run.config import TrainConfig
from refimpl.run.world import World
from refimpl.train.setup.prepare import prepare
from refimpl.train.sharding.mesh import check_sharding, make_mesh, ranks_per_node
from tests.train import runs

HYBRID = {"sharding": "hybrid"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sharding": "shrad"},
            "train.sharding 'shrad' is unknown; use replicate, shard, hybrid.*nearest is 'shard'",
        ),
        (
            {"sharding": "shard", "zero1": True},
            "train.zero1 divides .* train.sharding 'shard' divides it already; set one of the two",
        ),
        ({**HYBRID, "zero1": True}, "train.sharding 'hybrid' divides it already"),
        (
            {"ranks_per_node": 2},
            "train.ranks_per_node 2 is for train.sharding 'hybrid' alone, not 'replicate'",
        ),
        ({**HYBRID, "ranks_per_node": -1}, "train.ranks_per_node -1 must be at least 0"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "size", "local", "message"),
    [
        (
            {**HYBRID, "ranks_per_node": 2},
            3,
            "",
            "needs a whole number of nodes, but train.ranks_per_node says 2 ranks on each and the run has 3; set "
            "train.ranks_per_node to a divisor of 3, or use shard",
        ),
        (HYBRID, 12, "8", "torchrun's LOCAL_WORLD_SIZE says 8 ranks on each and the run has 12"),
        (HYBRID, 4, "1", "among the ranks of a node, and torchrun's LOCAL_WORLD_SIZE says 1; name more"),
        ({**HYBRID, "ranks_per_node": 1}, 4, "", "and train.ranks_per_node says 1"),
        ({**HYBRID, "ranks_per_node": 8}, 4, "", "says 8 ranks on each and the run has 4"),
    ],
)
def test_what_the_world_cannot_form_is_refused(
    settings: dict[str, Any], size: int, local: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local) if local else monkeypatch.delenv("LOCAL_WORLD_SIZE", False)
    with pytest.raises(InputError, match=message):
        check_sharding(TrainConfig(**settings), size)


def test_it_is_refused_before_anything_is_read_or_written(tmp_path: Path) -> None:
    train = {**HYBRID, "ranks_per_node": 2}
    config = runs.config(tmp_path / "nowhere", tmp_path, train=train)
    with pytest.raises(InputError, match="needs a whole number of nodes"):
        prepare(config, tmp_path, World(0, 3, torch.device("cpu")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "size", "local", "ranks"),
    [
        ({}, 8, "8", 1),
        ({"zero1": True}, 8, "8", 1),
        ({"sharding": "shard"}, 8, "4", 8),
        (HYBRID, 8, "4", 4),
        (HYBRID, 8, "", 8),
        ({**HYBRID, "ranks_per_node": 2}, 8, "4", 2),
        ({**HYBRID, "ranks_per_node": 2}, 1, "", 1),  # one rank divides nothing
        ({"sharding": "shard"}, 1, "", 1),
    ],
)
def test_ranks_among_which_weights_are_divided(
    settings: dict[str, Any], size: int, local: str, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local) if local else monkeypatch.delenv("LOCAL_WORLD_SIZE", False)
    train = TrainConfig(**settings)
    check_sharding(train, size)
    assert ranks_per_node(train, size) == ranks
    if ranks == 1:
        assert make_mesh(train, World(0, size, torch.device("cpu"))) is None
