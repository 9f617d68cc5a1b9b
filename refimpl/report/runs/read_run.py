"""What a run folder holds, as far as a report shows it; a part that is missing or damaged leaves the others."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refimpl.errors import InputError
from refimpl.interop.run.checkpoints import committed_steps
from refimpl.report.page import data_uri
from refimpl.tables import parsed_json
from refimpl.train.metrics.downsample import downsampled
from refimpl.train.metrics.grid_notes import notes_of
from refimpl.train.metrics.own_files import linked, opened_regular
from refimpl.train.metrics.read_rows import JsonLines, MetricRows

POINTS = 2000  # of a series in the page: more than a wide screen has pixels across
MOST_GRIDS = 24  # sample grids in the page; of more, these are spread over the steps
WIDEST = 1400  # px of a sample grid in the page
SMALL = 400_000  # bytes up to which a picture stays a PNG
MOST_LISTED = 200  # newest faults and quarantined images
GAP = 2  # px between the images of a sample grid, as `refimpl.sample.images.picture_files` leaves


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it.

    settings    dotted name → value; empty where they can't be read
    rows        of metrics.jsonl
    faults      rows of faults.jsonl, the newest first; quarantine likewise
    grids       sample grids by step, as (step, file)
    weight_mass  share of the loss weight on the noisiest timesteps; None where the first row has none
    """

    folder: Path
    settings: Mapping[str, Any]
    rows: MetricRows
    faults: Sequence[Mapping[str, Any]]
    quarantine: Sequence[Mapping[str, Any]]
    checkpoints: Sequence[int]
    grids: Sequence[tuple[int, Path]]
    weight_mass: float | None = None
    problems: Sequence[str] = field(default_factory=tuple)

    def last(self, name: str) -> tuple[int, float] | None:
        """Step and value of the newest number of a series; None where there is none."""
        steps, values = self.series(name, POINTS)
        return (int(steps[-1]), float(values[-1])) if len(steps) else None

    def series(self, name: str, points: int) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a series, with at most so many points; the extremes stay."""
        return downsampled(self.rows.steps, self.rows.columns.get(name, []), points)

    @property
    def steps(self) -> int | None:
        """Steps that the run is to take; None where the settings don't say."""
        found = self.settings.get("train.steps", self.settings.get("decoder.steps"))
        return found if isinstance(found, int) else None


def read_run(folder: Path) -> Run:
    """Reads a run folder. Raises InputError when it is none, or when its metrics can't be read."""
    metrics, config = folder / "metrics.jsonl", folder / "config.json"
    if not folder.exists():
        raise InputError(f"{folder}: there is no such folder; name a run's")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; name the folder of a run, such as {folder.absolute().parent}")
    if not _is_run(folder):
        inner = sorted(path for path in folder.glob("*") if _is_run(path))
        advice = f"; it holds runs: name one of them, such as {inner[0]}" if inner else ""
        raise InputError(f"{folder} is no run folder: it has neither metrics.jsonl nor config.json{advice}")
    problems = [line] if (line := linked(folder)) else []
    rows = MetricRows(metrics)
    if metrics.is_file():
        try:
            rows.update()
        except OSError as error:
            raise InputError(f"{metrics} cannot be read: {error.strerror}") from error
    return Run(
        folder,
        _settings(config, problems),
        rows,
        _newest(folder / "faults.jsonl", problems),
        _newest(folder / "quarantine.jsonl", problems),
        committed_steps(folder),
        _grids(folder / "samples"),
        _weight_mass(metrics),
        problems,
    )


def _is_run(folder: Path) -> bool:
    return (folder / "metrics.jsonl").is_file() or (folder / "config.json").is_file()


def _weight_mass(metrics: Path) -> float | None:
    """From the first row, where a run writes it."""
    try:
        first, _ = JsonLines(metrics).read()
    except OSError:
        return None
    found = first[0].get("weight_mass") if first else None
    share = found.get("share") if isinstance(found, dict) else None
    return float(share) if isinstance(share, int | float) else None


def _grids(folder: Path) -> list[tuple[int, Path]]:
    found = [] if folder.is_symlink() else folder.glob("step-*.png")
    return sorted((_steps_of(path.stem), path) for path in found)


def _steps_of(name: str) -> int:
    number = name.removeprefix("step-")
    return int(number) if number.isascii() and number.isdecimal() else 0


def _settings(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        with opened_regular(path) as file:
            table = parsed_json(file.read())
        if not isinstance(table, dict):
            raise ValueError("no table")
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} can't be read ({type(error).__name__}); the settings are not shown")
        return {}
    return dict(_flat("", table))


def _flat(prefix: str, table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found = []
    for name, value in table.items():
        if isinstance(value, dict):
            found += _flat(f"{prefix}{name}.", value)
        else:
            found.append((f"{prefix}{name}", value))
    return found


def _newest(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The newest rows of a file of JSON lines, the newest first; none where there is no file."""
    if not path.is_file():
        return []
    lines, found, is_more = JsonLines(path), [], True
    try:
        while is_more:
            rows, is_more = lines.read()
            found = [*found, *rows]
    except OSError as error:
        problems.append(f"{path.name} can't be read: {error.strerror}")
    return found[::-1]


def embedded_grids(run: Run) -> list[dict[str, Any]]:
    """The sample grids as the page's script takes them, with their prompts; damaged pictures are left out."""
    chosen = run.grids
    if len(chosen) > MOST_GRIDS:
        places = np.linspace(0, len(chosen) - 1, MOST_GRIDS).round().astype(int)
        chosen = [chosen[place] for place in places]
    prompts = run.settings.get("sample.prompts")
    prompts = prompts if isinstance(prompts, list) else []
    found = []
    for step, path in chosen:
        try:
            with opened_regular(path) as file, Image.open(file) as opened:
                drawn_for, picture = notes_of(opened).get("prompts", prompts), opened.convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        gap = GAP * min(1.0, WIDEST / picture.width)
        if picture.width > WIDEST:
            picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)))
        content, kind = _encoded(picture)
        size = {"width": picture.width, "height": picture.height, "gap": gap}
        labels = [str(prompt) for prompt in drawn_for]
        found.append({"step": step, "url": data_uri(content, kind), "prompts": labels, **size})
    return found


def _encoded(picture: Image.Image) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    if buffer.tell() <= SMALL:
        return buffer.getvalue(), "png"
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return buffer.getvalue(), "jpeg"


def embedded_series(run: Run) -> dict[str, dict[str, list[float]]]:
    """Every series of the run as the page's script takes it."""
    found = {}
    for name in run.rows.columns:
        steps, values = run.series(name, POINTS)
        found[name] = {"steps": steps.tolist(), "values": [float(f"{value:.6g}") for value in values]}
    return found


def shown(value: Any) -> str:
    """A setting as a reader sees it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
