"""Who may ask: this machine's browser with the token, and no page from anywhere else.

A page of another site can make a browser send requests here. A name that it points at 127.0.0.1 (DNS rebinding) is
refused by the Host header, its own requests by Origin and Sec-Fetch-Site, and both lack the cookie, which only the
address with the token sets and which a browser sends along with no other site's requests (SameSite=Strict). A page of
another server on this machine is of the same site: its requests have the cookie, and Sec-Fetch-Site tells them apart.
"""

import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HTTP_PORT = 80  # which a browser leaves out of Host and Origin
# Sec-Fetch-Site of the page's own requests and of a typed address; clients that are no browsers have no such header.
OWN_FETCHES = (None, "same-origin", "none")
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def cookie_name(port: int) -> str:
    """The cookie of the studio at a port: cookies know no ports, and two studios may run."""
    return f"refimpl-studio-{port}"


class Access:
    """The application behind its checks, and with the headers that keep what it answers inert."""

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app, self._token, self._cookie = app, token, cookie_name(port)
        names = ("127.0.0.1", "localhost")
        self._hosts = {f"{name}:{port}" for name in names} | set(names if port == HTTP_PORT else ())
        self._origins = {f"http://{host}" for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._refusal(scope) or self._greeting(scope) or self._app
        await answer(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if headers.get("host") not in self._hosts:
            return _refused("this server is asked as 127.0.0.1 or localhost only", 421)
        origin = headers.get("origin")
        is_foreign = origin is not None and origin not in self._origins
        if is_foreign or headers.get("sec-fetch-site") not in OWN_FETCHES:
            return _refused(
                "requests of other pages are refused; if you followed a link, paste the address instead", 403
            )
        if scope["method"] not in ("GET", "HEAD"):
            if origin is None:
                return _refused("a request that changes something needs an Origin header", 403)
            if headers.get("content-type", "").split(";")[0].strip() != "application/json":
                return _refused("send application/json", 415)
        return None

    def _greeting(self, scope: Scope) -> Response | None:
        """What someone gets who hasn't the cookie yet, or asks for it; None for who has it."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and given and self._is_token(given):
            answer = RedirectResponse("/", 303)  # so that the token is in no history
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
            return answer
        if self._is_token(_cookie(Headers(scope=scope), self._cookie)):
            return None
        line = "open the address that `refimpl studio` printed: it holds the token"
        return PlainTextResponse(f"{line}\n", 403) if scope["path"] == "/" else _refused(line, 403)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie("; ".join(headers.getlist("cookie"))).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _refused(line: str, status: int) -> JSONResponse:
    return JSONResponse({"error": line}, status)
