"""Answers as JSON, refusals in one line, and the numbers that a request gives."""

import functools
import inspect
import json
import math
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from refimpl.errors import InputError


class Refusal(Exception):
    """Why a request is not answered, in one line, and the HTTP status that says so."""

    def __init__(self, line: str, status: int = 400) -> None:
        super().__init__(line)
        self.status = status


def answer(content: Any, status: int = 200) -> Response:
    """An answer of JSON. Numbers that are not finite become null, and no markup stands in it unescaped."""
    try:
        text = json.dumps(content, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(content), allow_nan=False)
    # Inert even where something takes it for HTML.
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Response(text, status, media_type="application/json")


def refused(line: str, status: int) -> Response:
    """A refusal as JSON: what was wrong, in one line."""
    return answer({"error": " ".join(line.split())}, status)


Endpoint = Callable[[Request], Response | Awaitable[Response]]


def answered(endpoint: Endpoint) -> Callable[[Request], Any]:
    """The endpoint with its refusals as answers; one that waits for nothing stays in its thread."""
    if inspect.iscoroutinefunction(endpoint):

        @functools.wraps(endpoint)
        async def later(request: Request) -> Response:
            try:
                return await endpoint(request)
            except Exception as error:
                return _said(error)

        return later

    @functools.wraps(endpoint)
    def at_once(request: Request) -> Any:
        try:
            return endpoint(request)
        except Exception as error:
            return _said(error)

    return at_once


def _said(error: Exception) -> Response:
    """The answer to a refusal, to bad input and to a file that is gone. Raises what is an error of this program."""
    if isinstance(error, Refusal):
        return refused(str(error), error.status)
    if isinstance(error, InputError):
        return refused(str(error), 404)
    if isinstance(error, RecursionError):
        return refused("it is nested too deep", 404)
    if isinstance(error, FileNotFoundError):
        return refused("it is not there any more", 404)
    if isinstance(error, OSError):
        name = Path(os.fsdecode(error.filename)).name if error.filename else "it"
        return refused(f"{name} can't be read: {error.strerror or error}", 404)
    raise error


def whole_number(request: Request, name: str, default: int, least: int, most: int) -> int:
    """A whole number of a request's query. Raises Refusal when it is none, or out of range."""
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 20 and least <= int(text) <= most):
        raise Refusal(f"{name}: a whole number from {least} to {most}")
    return int(text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
