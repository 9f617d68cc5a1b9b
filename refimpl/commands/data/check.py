"""`refimpl data`: index a data set, look at it before any training, weigh its tags (N §4.1.2, §4.3)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from refimpl.checks import check_at_least, check_seed
from refimpl.commands.data.configured import data_command as configured_command
from refimpl.commands.data.index import cores, index_command, looked_at
from refimpl.data.aspect_table import Metric
from refimpl.data.config import BucketConfig, TagWeightConfig
from refimpl.data.images.decode import Accepted
from refimpl.data.index.record import IndexOptions
from refimpl.data.survey.plan_survey import survey_plans
from refimpl.data.survey.survey import changed_files, survey, weight_survey
from refimpl.data.tags import TagCounts
from refimpl.errors import InputError
from refimpl.report.data_page import survey_lines, survey_page, weight_lines, weight_page
from refimpl.storage.atomic import replace_text


@dataclass(frozen=True)
class CheckCommand:
    """Prints what a data set holds: problems by kind, sizes, aspects, buckets, tags. Nothing is trained."""

    source: Annotated[str, tyro.conf.Positional]
    """index, folder, .jsonl, kohya's .json, .parquet or .tar"""
    buckets: str = "novelai_v3"
    """bucket preset: novelai_v1, novelai_v3 or sdxl"""
    aspect_metric: Metric = "log"
    """distance between aspects, as data.aspect_metric"""
    max_aspect_error: float = 0.0
    """|log aspect error| beyond which an image is pruned, as data.max_aspect_error; 0 for no limit"""
    batch_size: int = 0
    """images per rank and step: also report the plan of epoch 0 in both modes; 0 for no plan"""
    world_size: int = 1
    """ranks of that plan"""
    seed: int = 0
    """of that plan's shuffle, as train.seed"""
    html: Path | None = None
    """also write this page, with plots (needs refimpl[report])"""
    files: bool = False
    """of an index: also look at every image file for changes since, by its size and, where it is there, SHA-256"""
    verify: bool = False
    """of other sources: decode every image in full, to find all damage"""
    any_suffix: bool = False
    """of other sources: take files whose suffix is that of another format"""
    listed: int = 5
    """problems and tags that are named of each kind"""
    processes: int = 0
    """that read at once; 0 for one on each core"""

    def __post_init__(self) -> None:
        check_at_least("--batch-size", self.batch_size, 0)
        check_at_least("--world-size", self.world_size, 1)
        check_seed("--seed", self.seed)
        check_at_least("--listed", self.listed, 1)
        check_at_least("--processes", self.processes, 0)


@dataclass(frozen=True)
class TagsCommand:
    """Prints the loss weights that a data set's tags give its images, and the tags of each class."""

    source: Annotated[str, tyro.conf.Positional]
    """index, folder, .jsonl, kohya's .json, .parquet or .tar"""
    weights: TagWeightConfig = field(default_factory=TagWeightConfig)
    """as tag_weights of a configuration"""
    html: Path | None = None
    """also write this page, with a plot (needs refimpl[report])"""
    listed: int = 5
    """images and tags that are named of each kind"""
    processes: int = 0
    """that read at once; 0 for one on each core"""

    def __post_init__(self) -> None:
        check_at_least("--listed", self.listed, 1)
        check_at_least("--processes", self.processes, 0)


def check_command(arguments: list[str], program: str = "refimpl data check") -> None:
    """Prints the survey, and writes the page where asked."""
    command = tyro.cli(CheckCommand, args=arguments, prog=program)
    _check_free(command.html)
    buckets = BucketConfig(preset=command.buckets).sizes()
    limit = command.max_aspect_error or math.inf
    options = IndexOptions(accepted=Accepted(any_suffix=command.any_suffix), verify=command.verify)
    with looked_at(command.source, options, command.processes or cores()) as table:
        found = survey(table, buckets, command.aspect_metric, limit, command.listed)
        for bad in changed_files(table) if command.files else []:
            found.problems.setdefault(bad.kind, []).append(bad)
        plans = [] if not command.batch_size else survey_plans(
            table, buckets, command.batch_size, command.world_size, command.aspect_metric, limit, command.seed,
            command.listed,
        )  # fmt: skip
    _show(survey_lines(command.source, found, command.listed, plans))
    if command.html:
        replace_text(command.html, survey_page(command.source, found, command.listed, plans))
        print(f"wrote {command.html}")


def tags_command(arguments: list[str], program: str = "refimpl data tags") -> None:
    """Prints the weights, and writes the page where asked."""
    command = tyro.cli(TagsCommand, args=arguments, prog=program)
    _check_free(command.html)
    settings = command.weights
    counts = TagCounts(settings.beta, settings.least, settings.most)
    with looked_at(command.source, IndexOptions(), command.processes or cores()) as table:
        found = weight_survey(table, counts, listed=command.listed)
    _show(weight_lines(command.source, found))
    if command.html:
        replace_text(command.html, weight_page(command.source, found))
        print(f"wrote {command.html}")


def _check_free(path: Path | None) -> None:
    if path is not None and path.is_dir():
        raise InputError(f"--html {path} is a folder; name a file in it")


def _show(lines) -> None:
    for line in lines:
        print(line)


SUBCOMMANDS: dict[str, tuple[Callable[[list[str], str], None], str]] = {
    "index": (index_command, "read any layout of images into one index file"),
    "check": (check_command, "problems, sizes, aspects, buckets and tags, before any training"),
    "tags": (tags_command, "loss weights by tags, the heaviest and lightest images"),
}


def data_command(arguments: list[str], program: str = "refimpl data") -> None:
    """One of the subcommands, or a configuration whose data is looked at as training would read it."""
    if arguments and arguments[0] in SUBCOMMANDS:
        SUBCOMMANDS[arguments[0]][0](arguments[1:], f"{program} {arguments[0]}")
        return
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, SUBCOMMANDS))
        print(f"usage: {program} COMMAND [ARGUMENTS]\n")
        for name, (_, what) in SUBCOMMANDS.items():
            print(f"  {name:<{width}}  {what}")
        print(f"\n{program} CONFIG [--folder IMAGES]: a configuration's own data, as training would read it")
        return
    configured_command(arguments, program)
