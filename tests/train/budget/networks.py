"""Settings of networks that are counted in a moment, and counts that several tests share."""

from dataclasses import replace
from functools import cache
from typing import Any

from refimpl.run.config import Config
from refimpl.run.presets import load_config
from refimpl.train.budget.counted import Counted, count
from refimpl.train.budget.plan import largest_work


def small(**train: Any) -> Config:
    """The tiny preset without held-out images and samples, with other settings of [train]."""
    config = load_config("tiny")
    data = replace(config.data, heldout="")
    return replace(config, data=data, train=replace(config.train, **{"sample_every": 0, **train}))


@cache
def counted(config: Config) -> Counted:
    """The count at the configuration's largest work."""
    return count(config, largest_work(config).bucket)
