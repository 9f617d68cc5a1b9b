"""The answers about runs: their list, one's details and curves, its pictures, and what is asked of it."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from refimpl.errors import InputError
from refimpl.studio.answers import Refusal, answer, answered, whole_number
from refimpl.studio.run_files import CONFIG, METRICS, Run, find_runs, is_training, plain_file, read_json
from refimpl.studio.run_summary import GRID, REPORT, details, differences, summary
from refimpl.train.metrics.downsample import FEWEST, MOST, downsampled
from refimpl.train.metrics.own_files import opened_regular
from refimpl.train.metrics.read_rows import LARGEST, MetricRows
from refimpl.train.watch.control_file import ACTIONS, CONTROL, ask

OPEN_RUNS = 8  # whose rows are kept in memory; a page overlays four
COMPARED = 4
POINTS = 800
MOST_BYTES = 2**26  # of a picture or a report
SANDBOX = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'"


class Runs:
    """The run folders below a folder, as they come and vanish, and the rows of those last looked at."""

    def __init__(self, root: Path, may_control: bool) -> None:
        self.root, self.may_control = root, may_control
        self._rows: OrderedDict[str, tuple[threading.Lock, MetricRows]] = OrderedDict()
        self._lock = threading.Lock()

    def found(self) -> tuple[list[Run], str]:
        """The runs, and why there are none, if that is so for want of a folder."""
        try:
            return find_runs(self.root), ""
        except OSError as error:
            return [], f"{self.root}: {error.strerror}; name the folder of your runs: refimpl studio RUNS"

    def run(self, request: Request) -> Run:
        """The run that a request names. Raises Refusal when there is none."""
        return self.by_id(request.path_params["id"])

    def by_id(self, name: str) -> Run:
        """The run of an id. Raises Refusal when there is none."""
        for run in self.found()[0]:
            if run.id == name:
                return run
        raise Refusal("there is no such run, or its folder has vanished", 404)

    def rows(self, run: Run) -> tuple[threading.Lock, MetricRows]:
        """The rows of a run, and the lock to be held while they are read."""
        with self._lock:
            entry = self._rows.pop(run.id, None) or (threading.Lock(), MetricRows(run.path / METRICS))
            self._rows[run.id] = entry
            while len(self._rows) > OPEN_RUNS:
                self._rows.popitem(last=False)
            return entry

    def counts(self, run: Run) -> dict[str, int | None]:
        """How many rows were read of a run, and how many were broken; None where it was not looked at."""
        entry = self._rows.get(run.id)
        return {"rows": len(entry[1]) if entry else None, "broken_rows": entry[1].broken if entry else None}


def run_routes(runs: Runs) -> list[Route]:
    """The routes of everything about runs."""

    def listed(request: Request) -> Response:
        found, problem = runs.found()
        lines = []
        for run in found:
            try:
                lines.append(summary(run) | runs.counts(run))
            except OSError:
                continue  # it has vanished just now
        lines.sort(key=lambda line: -(line["updated"] or 0))
        return answer({"runs": lines, "problem": problem})

    def one(request: Request) -> Response:
        run = runs.run(request)
        return answer(details(run) | runs.counts(run))

    def metrics(request: Request) -> Response:
        lock, rows = runs.rows(runs.run(request))
        with lock:
            with contextlib.suppress(FileNotFoundError):  # a run that has not written a row yet
                rows.update()
            after = request.query_params.get("after")
            return answer(_curves(rows, request) if after is None else _new_rows(rows, after))

    def different(request: Request) -> Response:
        ids = [name for name in request.query_params.get("ids", "").split(",") if name]
        if not 1 <= len(ids) <= COMPARED:
            raise Refusal(f"ids: name 1 to {COMPARED} runs")
        tables = [read_json(runs.by_id(name).path / CONFIG)[0] for name in ids]
        return answer({"ids": ids, "differences": differences(tables)})

    def picture(request: Request) -> Response:
        run, name = runs.run(request), request.path_params["name"]
        path = plain_file(run.path, "samples", name) if GRID.fullmatch(name) else None
        if path is None:
            raise Refusal("there is no such picture", 404)
        return Response(_content(path), media_type="image/png")

    def report(request: Request) -> Response:
        path = plain_file(runs.run(request).path, REPORT)
        if path is None:
            raise Refusal("this run has no report yet: refimpl report RUN", 404)
        headers = {"Content-Security-Policy": SANDBOX}
        return Response(_content(path), media_type="text/html", headers=headers)

    async def control(request: Request) -> Response:
        if not runs.may_control:
            raise Refusal("this studio only reads; start it with --control to ask anything of a run", 403)
        try:
            body = await request.json()
        except (ValueError, RecursionError):
            body = None
        action = body.get("action") if isinstance(body, dict) else None
        if action not in ACTIONS:
            raise Refusal(f"action: one of {', '.join(ACTIONS)}")
        return await run_in_threadpool(_ask, runs.run(request), action)

    get: dict[str, Callable[[Request], Response]] = {
        "/api/runs": listed,
        "/api/runs/{id}": one,
        "/api/runs/{id}/metrics": metrics,
        "/api/differences": different,
        "/runs/{id}/samples/{name}": picture,
        f"/runs/{{id}}/{REPORT}": report,
    }
    routes = [Route(path, answered(what)) for path, what in get.items()]
    return [*routes, Route("/api/runs/{id}/control", answered(control), methods=["POST"])]


def _content(path: Path) -> bytes:
    with opened_regular(path) as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise Refusal(f"{path.name} is larger than {MOST_BYTES >> 20} MiB; open the file itself", 413)
    return content


def _ask(run: Run, action: str) -> Response:
    if not is_training(run.path):
        raise Refusal(f"{run.name} is not being trained on this machine", 409)
    try:
        return answer({"asked": ask(run.path / CONTROL, action)}, 202)
    except InputError as error:
        raise Refusal(str(error), 409) from error


def _curves(rows: MetricRows, request: Request) -> dict[str, Any]:
    """The series in the window that a request names."""
    first = whole_number(request, "from", 0, 0, LARGEST)
    last = whole_number(request, "to", LARGEST, 0, LARGEST)
    points = whole_number(request, "points", POINTS, FEWEST, MOST)
    series = {}
    for name, column in rows.columns.items():
        steps, values = downsampled(rows.steps, column, points, first, last)
        if len(steps):
            series[name] = {"steps": steps.tolist(), "values": values.tolist()}
    return {
        "cursor": rows.cursor,
        "first_step": min(rows.steps, default=0),
        "last_step": max(rows.steps, default=0),
        "rows": len(rows),
        "broken_rows": rows.broken,
        "series": series,
    }


def _new_rows(rows: MetricRows, after: str) -> dict[str, Any]:
    """What has come since a cursor."""
    new = rows.since(after)
    return {"cursor": rows.cursor, "reload": new is None, "rows": new or []}
