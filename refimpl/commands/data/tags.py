"""`refimpl data tags`: the loss weights that tags give the images of a data set (N §4.3)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from refimpl.checks import check_at_least
from refimpl.commands.data.index import looked_at
from refimpl.commands.data.printed import check_page, show
from refimpl.commands.terminal import parsed
from refimpl.data.config import TagWeightConfig
from refimpl.run.threads import usable_cpus


@dataclass(frozen=True)
class TagsCommand:
    """Prints the loss weights that a data set's tags give its images, and the tags of each class."""

    source: Annotated[str, tyro.conf.Positional]
    """Index, folder, .jsonl, kohya's .json, .parquet or .tar."""
    weights: TagWeightConfig = field(default_factory=TagWeightConfig)
    """The same settings as tag_weights in a configuration."""
    html: Path | None = None
    """Also write this HTML page, with a plot (needs matplotlib)."""
    listed: int = 5
    """Number of images and tags of each kind to list by name."""
    processes: int = 0
    """Number of processes that read at once; 0 for one per CPU that this process may use."""
    allow_outside: bool = False
    """Also read files outside the source's folder, which metadata files and links may name."""

    def __post_init__(self) -> None:
        check_at_least("--listed", self.listed, 1)
        check_at_least("--processes", self.processes, 0)


def tags_command(arguments: list[str], program: str = "refimpl data tags") -> None:
    """Prints the weights, and writes the page where asked."""
    command = parsed(TagsCommand, arguments, program)
    check_page(command.html)
    from refimpl.data.index.record import IndexOptions
    from refimpl.data.survey.survey import weight_survey
    from refimpl.data.tags import TagCounts
    from refimpl.report.data_page import weight_lines, weight_page

    settings = command.weights
    counts = TagCounts(settings.beta, settings.least, settings.most)
    with looked_at(
        command.source, IndexOptions(allow_outside=command.allow_outside), command.processes or usable_cpus()
    ) as table:
        found = weight_survey(table, counts, listed=command.listed)
    show(weight_lines(command.source, found), lambda: weight_page(command.source, found), command.html)
