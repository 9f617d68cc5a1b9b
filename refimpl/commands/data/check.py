"""`refimpl data check`: what a data set would be trained as, before any training (N §4.1.2, §4.1.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from refimpl.checks import check_at_least, check_seed
from refimpl.commands.data.index import looked_at
from refimpl.commands.data.printed import check_page, show
from refimpl.commands.terminal import parsed
from refimpl.data.bucket_sizes import Bucket, Metric
from refimpl.data.captions import DEFAULT_TAG_CLASSES
from refimpl.data.config import BucketConfig
from refimpl.errors import InputError
from refimpl.names import LIKE, nearest
from refimpl.run.config import Config, Stage
from refimpl.run.presets import load_config, preset_names
from refimpl.run.threads import usable_cpus

if TYPE_CHECKING:
    import numpy as np

    from refimpl.data.index.record import IndexOptions

DEFAULT_BUCKETS = "novelai_v3"


@dataclass(frozen=True)
class CheckCommand:
    """Prints what a data set holds: problems by kind, sizes, aspects, buckets, tags. Nothing is trained.

    For a configuration: each stage's images, with the stage's buckets and the plan of its first epoch.
    """

    source: Annotated[str, tyro.conf.Positional]
    """Index, folder, .jsonl, kohya's .json, .parquet or .tar; or a preset or TOML file, whose images are checked."""
    folder: str = ""
    """Images to check instead of the configuration's; empty for the configuration's."""
    buckets: str | None = None
    """Bucket preset: novelai_v1, novelai_v3 or sdxl. When left out, the configuration's, or else novelai_v3."""
    aspect_metric: Metric | None = None
    """Distance between aspect ratios; when left out, data.aspect_metric, or else log."""
    max_aspect_error: float | None = None
    """Images whose |log aspect error| exceeds this are pruned, 0 for no limit; when left out, data.max_aspect_error,
    or else 0."""
    batch_size: int | None = None
    """Images per rank and step: also report the plan of epoch 0 in both modes, which is an error where there can be
    none; 0 for no plan. When left out, the configuration's, or else 0."""
    world_size: int = 1
    """Number of ranks in that plan."""
    seed: int | None = None
    """Seed of that plan's shuffle; when left out, train.seed, or else 0."""
    html: Path | None = None
    """Also write this HTML page, with plots (needs matplotlib); a number is added to its name where there are
    several stages."""
    files: bool = False
    """For an index: also check whether any image file has changed since, by its size and, where recorded, its
    SHA-256."""
    verify: bool = False
    """For other sources: decode every image in full, to find all damage."""
    own_suffix: bool = False
    """For other sources: refuse files whose suffix is that of another format, such as a JPEG named .png, which are
    otherwise taken for what their bytes are."""
    allow_outside: bool = False
    """Also read files outside the source's folder, which metadata files, an index and links may name."""
    listed: int = 5
    """Number of problems and tags of each kind to list by name."""
    processes: int = 0
    """Number of processes that read at once; 0 for one per CPU that this process may use."""

    def __post_init__(self) -> None:
        check_at_least("--max-aspect-error", self.max_aspect_error or 0.0, 0)
        check_at_least("--batch-size", self.batch_size or 0, 0)
        check_at_least("--world-size", self.world_size, 1)
        check_seed("--seed", self.seed or 0)
        check_at_least("--listed", self.listed, 1)
        check_at_least("--processes", self.processes, 0)

    def options(self, tag_classes: tuple[str, ...] = DEFAULT_TAG_CLASSES) -> IndexOptions:
        """How images that are not indexed yet are read."""
        from refimpl.data.images.decode import Accepted
        from refimpl.data.index.record import IndexOptions
        from refimpl.data.tag_rules import TagRules

        accepted = Accepted(own_suffix=self.own_suffix)
        return IndexOptions(TagRules(tag_classes), accepted, self.verify, allow_outside=self.allow_outside)


@dataclass(frozen=True)
class Looked:
    """One data set, and the settings to survey it with."""

    source: str
    options: IndexOptions
    buckets: list[Bucket]
    metric: Metric
    limit: float  # |log aspect error|
    batch_size: int | np.ndarray  # of a rank, or of a rank by bucket; 0 for no plan
    seed: int
    html: Path | None
    no_batch: str = ""  # why the settings give the ranks no batch


def is_configuration(source: str) -> bool:
    """Whether the source is a preset or a TOML file rather than a data set."""
    return Path(source).suffix == ".toml" or (source in preset_names() and not Path(source).exists())


def check_command(arguments: list[str], program: str = "refimpl data check") -> None:
    """Prints the survey, and writes the page where asked."""
    command = parsed(CheckCommand, arguments, program)
    check_page(command.html)
    if not is_configuration(command.source):
        _check_data_set(command)
        return
    config = load_config(command.source)
    if command.folder:
        config = replace(config, data=replace(config.data, folder=command.folder, demo=False))
    _check_stages(command, config)


def _check_data_set(command: CheckCommand) -> None:
    """Looks at an index, or at a data set of any other layout."""
    if command.folder:
        raise InputError(
            f"--folder {command.folder} replaces the images of a configuration, and {command.source} is none; name "
            "the images alone"
        )
    near = nearest(command.source, preset_names(), least=LIKE)
    if near and not Path(command.source).exists():
        raise InputError(
            f"{command.source}: there is no such folder or file, and no such preset; the nearest is {near[0]!r}"
        )
    asked = Looked(
        command.source,
        command.options(),
        BucketConfig(preset=command.buckets or DEFAULT_BUCKETS).sizes(),
        command.aspect_metric or "log",
        command.max_aspect_error or math.inf,
        command.batch_size or 0,
        command.seed or 0,
        command.html,
    )
    refused = _look(command, asked)
    if refused:
        raise InputError(refused)


def _check_stages(command: CheckCommand, config: Config) -> None:
    """Looks at the images of every stage, plans its first epoch, and reads the images as training would.

    Raises InputError with all that training on these ranks would end with, after every stage has been shown.
    """
    from refimpl.data.index.data_set import read_source
    from refimpl.data.scores import take_scores
    from refimpl.run.stage import tag_classes, write_demo_data

    write_demo_data(config.data)
    stages, classes = config.all_stages(), tag_classes(config.data, config.text)
    allowed = command.allow_outside or config.data.allow_outside
    problems: list[str] = []
    for number, stage in enumerate(stages):
        html, where = command.html, f"stage {number}: " if len(stages) > 1 else ""
        if html is not None and len(stages) > 1:
            html = html.with_name(f"{html.stem}-{number}{html.suffix}")
        try:
            options = replace(command.options(classes), allow_outside=allowed)
            asked = _of_stage(command, config, stage, options, html)
            print(
                f"stage {number} from step {stage.from_step}: {_batch_of(asked)}; data.plan = {config.data.plan!r}"
            )
            refused = _look(command, asked)
            if refused:
                problems.append(where + refused)
            index = read_source(stage.folder, classes, config.data.allow_missing, allowed)
            if config.text.vector == "score":
                take_scores(index, config.data.score_class, config.data.default_score)
        except InputError as error:
            problems.append(f"{where}{error}")
    if problems:
        raise InputError("\n".join(problems))


def _batch_of(asked: Looked) -> str:
    import numpy as np

    if asked.no_batch:
        return "no batch"
    least, most = int(np.min(asked.batch_size)), int(np.max(asked.batch_size))
    return f"{least if least == most else f'{least} to {most}'} images per rank and step"


def _of_stage(
    command: CheckCommand, config: Config, stage: Stage, options: IndexOptions, html: Path | None
) -> Looked:
    """The settings to survey a stage with: its own, except for those given on the command line."""
    from refimpl.run.stage import folder_of, rank_batch

    buckets = (BucketConfig(preset=command.buckets) if command.buckets else stage.buckets).sizes()
    limit = config.data.max_aspect_error if command.max_aspect_error is None else command.max_aspect_error
    batch_size, no_batch = command.batch_size or 0, ""
    if command.batch_size is None:
        try:
            batch_size = rank_batch(config.train, stage, buckets, command.world_size)
        except InputError as error:
            no_batch = str(error)
    return Looked(
        folder_of(stage),
        options,
        buckets,
        command.aspect_metric or config.data.aspect_metric,
        limit or math.inf,
        batch_size,
        config.train.seed if command.seed is None else command.seed,
        html,
        no_batch,
    )


def _look(command: CheckCommand, asked: Looked) -> str:
    """Surveys one data set and shows it; returns why its first epoch can't be planned, empty if it can."""
    import numpy as np

    from refimpl.data.index.index_file import is_index
    from refimpl.data.survey.plan_survey import PlannedEpoch, survey_plans
    from refimpl.data.survey.survey import changed_files, survey
    from refimpl.report.data_page import survey_lines, survey_page
    from refimpl.storage.store import listed

    plans: list[PlannedEpoch] = []
    refused = asked.no_batch
    with looked_at(asked.source, asked.options, command.processes or usable_cpus()) as table:
        if is_index(asked.source):  # which may come from elsewhere, and says itself what it reads
            print(f"its images are in {listed(sorted({path for _, path, *_ in table.facts['containers']}))}")
        found = survey(table, asked.buckets, asked.metric, asked.limit, command.listed)
        for bad in changed_files(table) if command.files else []:
            found.problems.setdefault(bad.kind, []).append(bad)
        if np.any(asked.batch_size):
            try:
                plans = survey_plans(
                    table, asked.buckets, asked.batch_size, command.world_size, asked.metric, asked.limit,
                    asked.seed, command.listed,
                )  # fmt: skip
            except InputError as error:
                refused = str(error)

    shown = (asked.source, found, command.listed, plans, refused)
    show(survey_lines(*shown), lambda: survey_page(*shown), asked.html)
    return refused
