"""The studio as one application: the page, its files, and the answers that it asks for."""

from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import refimpl
from refimpl.studio.access import Access
from refimpl.studio.answers import answer, answered, refused
from refimpl.studio.data_routes import Browsed, data_routes
from refimpl.studio.run_routes import Runs, run_routes

PAGE = Path(__file__).parent / "page"
SHARED = Path(refimpl.__file__).parent / "report" / "static"  # style and figures, which the reports have too
POLL_SECONDS = 1.0  # between two questions for new rows


def make_app(runs: Runs, data: Browsed | None, token: str, port: int, page: Path = PAGE) -> Access:
    """The application behind its checks.

    data  the data set to browse; None where none was named
    page  the folder of index.html and of what it loads
    """

    def index(request: Request) -> Response:
        return Response((page / "index.html").read_bytes(), media_type="text/html")

    def studio(request: Request) -> Response:
        problems = [runs.found()[1], data.problem if data is not None else ""]
        return answer(
            {
                "version": refimpl.__version__,
                "control": runs.may_control,
                "runs_folder": str(runs.root),
                "has_data": data is not None,
                "poll_seconds": POLL_SECONDS,
                "problems": [line for line in problems if line],
            }
        )

    routes = [
        Route("/", answered(index)),
        Route("/api/studio", answered(studio)),
        *run_routes(runs),
        *data_routes(data),
        Mount("/static/shared", StaticFiles(directory=SHARED, check_dir=False)),
        Mount("/static", StaticFiles(directory=page, check_dir=False)),
    ]
    errors: dict[Any, Any] = {HTTPException: _http_error, Exception: _own_error}
    return Access(Starlette(routes=routes, exception_handlers=errors), token, port)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    line = {404: "there is no such page", 405: "this address takes no such request"}
    return refused(line.get(error.status_code, error.detail), error.status_code)


async def _own_error(request: Request, error: Exception) -> Response:
    """An error of this program: the page stays up, and the traceback is on the terminal."""
    return refused("the studio met an error of its own; the terminal shows it", 500)
