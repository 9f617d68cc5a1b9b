"""`refimpl data`: what a folder of images would be trained as, before any training (N §4.1.2)."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
import tyro

from refimpl.data.survey.plan_report import report_plan
from refimpl.data.tags import TagCounts, count_tags
from refimpl.errors import InputError
from refimpl.run.presets import load_config
from refimpl.run.stage import read_stage, write_demo_data
from refimpl.run.world import World
from refimpl.train.step_plan import plan_stage

TAGS_SHOWN = 5


@dataclass(frozen=True)
class DataCommand:
    """Reads a data set as training would and prints its buckets, aspect error and tags."""

    config: Annotated[str, tyro.conf.Positional]
    """preset or TOML file: its data and buckets are used"""
    folder: str = ""
    """images to look at, instead of the configuration's"""


def data_command(arguments: list[str], program: str = "refimpl data") -> None:
    """Prints one table per stage; every problem of the data ends in an error that names the file."""
    command = tyro.cli(DataCommand, args=arguments, prog=program)
    config = load_config(command.config)
    if command.folder:
        config = replace(config, data=replace(config.data, folder=command.folder, demo=False))
    write_demo_data(config.data)
    for number, stage in enumerate(config.all_stages()):
        data = read_stage(config, stage)
        widths, heights = data.index.widths, data.index.heights
        print(f"stage {number}: {len(data.index)} images in {stage.folder}")
        print(f"mean |aspect error|: {mean_aspect_error(data):.4f} (N §4.1.3: 0.033)")
        small = sum(
            int(widths[i] < data.buckets[b][0] or heights[i] < data.buckets[b][1])
            for i, b in enumerate(data.bucket_of)
        )
        print(f"images smaller than their bucket, which are enlarged: {small}")
        for (width, height), count in zip(
            data.buckets, np.bincount(data.bucket_of, minlength=len(data.buckets)), strict=True
        ):
            print(f"  {width:5d} × {height:<5d} {count}")
        try:
            plan = plan_stage(config.data, config.train, data, 0, World(0, 1, torch.device("cpu")))
            planned = report_plan(plan, data.buckets).lines(data.buckets)
        except InputError as error:  # of a data set that one process alone can't be trained on
            planned = [str(error)]
        print("\n".join(["plan of epoch 0 on one rank:", *planned]))
        counts = count_tags(data.index.tags, TagCounts()).counts
        for tag_class in sorted(counts):
            ranked = Counter(counts[tag_class]).most_common()
            most = ", ".join(f"{tag} ({n})" for tag, n in ranked[:TAGS_SHOWN])
            least = ", ".join(f"{tag} ({n})" for tag, n in ranked[-TAGS_SHOWN:])
            print(f"tags of class {tag_class}: {len(ranked)}; most frequent {most}; least {least}")


def mean_aspect_error(data) -> float:
    """Mean |bucket aspect − image aspect|, aspect = width / height, as N prints it (§4.1.2, §4.1.3)."""
    aspects = data.index.widths / data.index.heights
    buckets = np.array([width / height for width, height in data.buckets])
    return float(np.abs(buckets[data.bucket_of] - aspects).mean())
