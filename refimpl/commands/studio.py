"""`refimpl studio`: a local page on which runs and a data set are looked at while they change."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from refimpl.checks import check_at_least, check_at_most
from refimpl.commands.terminal import parsed
from refimpl.data.config import BucketConfig
from refimpl.run.config import Config
from refimpl.run.presets import load_config
from refimpl.tables import from_table

DEFAULT_BUCKETS = "novelai_v3"
LAST_PORT = 65535


@dataclass(frozen=True)
class StudioCommand:
    """Serves a page on this machine alone: runs with their curves and samples, and a data set's images.

    Prints the page's address, which holds a token, and answers until it is interrupted.
    """

    runs: Annotated[Path, tyro.conf.Positional] = Path("runs")
    """Folder of run folders, or one run folder."""
    data: Path | None = None
    """Index to browse, written by `refimpl data index`."""
    config: str = ""
    """Preset or TOML file with whose buckets, seed, flips and tag weights the images are shown; empty for the
    defaults with the buckets novelai_v3."""
    control: bool = False
    """Let the page ask a run for samples, a checkpoint, or to stop; without it, it only reads."""
    port: int = 8430
    """Port on 127.0.0.1; 0 for any that is free."""

    def __post_init__(self) -> None:
        check_at_least("--port", self.port, 0)
        check_at_most("--port", self.port, LAST_PORT)

    def settings(self) -> Config:
        """The settings that the data set is shown with."""
        if self.config:
            return load_config(self.config)
        defaults = from_table(Config, {}, "the defaults")
        return replace(defaults, buckets=BucketConfig(preset=DEFAULT_BUCKETS))


def studio_command(arguments: list[str], program: str = "refimpl studio") -> None:
    """Opens the port, then answers. Raises InputError for a port in use and for settings that make no sense."""
    command = parsed(StudioCommand, arguments, program)
    settings = command.settings()
    from refimpl.studio.serve import check_library, in_background, listening, new_token, serve

    check_library()
    from refimpl.studio.app import make_app
    from refimpl.studio.browsed import browse
    from refimpl.studio.run_routes import Runs

    at, token = listening(command.port), new_token()
    port = at.getsockname()[1]
    runs = Runs(command.runs, command.control)
    browsed = None if command.data is None else browse(command.data, settings)
    for problem in (runs.found()[1], browsed.problem if browsed else ""):
        if problem:
            print(f"problem: {problem}", flush=True)
    if browsed and not browsed.problem:
        in_background(browsed.count)
    app = make_app(runs, browsed, token, port)
    print(f"http://127.0.0.1:{port}/?token={token}", flush=True)
    serve(app, at)
