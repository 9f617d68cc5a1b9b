"""Who is refused: no token, a wrong one, another page, another name for this machine; and how inert answers are."""

from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from refimpl.studio.access import HEADERS, Access, cookie_name
from tests.studio.asking import BASE, PORT, TOKEN, asking, stranger, write_run

EVERYWHERE = [
    "/", "/api/studio", "/api/runs", "/api/runs/0", "/api/runs/0/metrics", "/api/differences", "/api/data",
    "/api/data/rows", "/api/data/rows/0", "/data/thumbnails/0", "/data/images/0", "/runs/0/samples/a.png",
    "/runs/0/report.html", "/static/index.html", "/static/shared/style.css", "/nowhere",
]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "index.html").write_text("<!doctype html><title>studio</title>")
    write_run(tmp_path / "run")
    return tmp_path


@pytest.mark.parametrize("path", EVERYWHERE)
def test_nothing_is_answered_without_the_token(path: str, root: Path) -> None:
    client = stranger(root)
    for cookies in ({}, {cookie_name(PORT): "wrong"}, {cookie_name(PORT): ""}, {cookie_name(1): TOKEN}):
        client.cookies = cookies
        answer = client.get(path)
        assert answer.status_code == 403
        assert "the address that `refimpl studio` printed" in answer.text
        assert TOKEN not in answer.text


@pytest.mark.parametrize(
    "query", ["?token=wrong", "?token=", "?token", f"?token={TOKEN}x", f"?Token={TOKEN}", "?token=%ff"]
)
def test_a_wrong_token_sets_no_cookie(query: str, root: Path) -> None:
    answer = stranger(root).get(f"/{query}", follow_redirects=False)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_the_token_is_traded_for_a_cookie_that_no_script_reads(root: Path) -> None:
    client = stranger(root)
    answer = client.get(f"/?token={TOKEN}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    set_cookie = answer.headers["set-cookie"]
    assert set_cookie.startswith(f"refimpl-studio-{PORT}={TOKEN};")
    assert {"httponly", "path=/", "samesite=strict"} <= {
        part.strip().lower() for part in set_cookie.split(";")
    }
    assert client.get("/").text.startswith("<!doctype html>")
    assert client.get("/api/runs").status_code == 200


def test_the_token_opens_the_page_alone(root: Path) -> None:
    assert stranger(root).get(f"/api/runs?token={TOKEN}").status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "localhost", f"127.0.0.1:{PORT + 1}",
             f"127.0.0.2:{PORT}",
             f"[::1]:{PORT}", f"127.0.0.1:{PORT}.evil.example", ""]
)  # fmt: skip
def test_other_names_of_this_machine_are_refused(host: str, root: Path) -> None:
    """A page whose name points at 127.0.0.1 has its own name in the Host header."""
    client = asking(root)
    for path in ("/", "/api/runs", f"/?token={TOKEN}"):
        answer = client.get(path, headers={"Host": host}, follow_redirects=False)
        assert answer.status_code == 421
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("host", [f"127.0.0.1:{PORT}", f"localhost:{PORT}"])
def test_both_names_of_the_studio_are_answered(host: str, root: Path) -> None:
    assert asking(root).get("/api/runs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": f"http://127.0.0.1:{PORT + 1}"},
     {"Origin": f"https://127.0.0.1:{PORT}"}, {"Origin": ""}, {"Sec-Fetch-Site": "cross-site"},
     {"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": ""}, {"Sec-Fetch-Site": "same-origin, same-site"}],
)  # fmt: skip
def test_other_pages_are_refused(headers: dict[str, str], root: Path) -> None:
    client = asking(root, control=True)
    for method in ("GET", "POST", "HEAD", "OPTIONS"):
        answer = client.request(method, "/api/runs", headers=headers)
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_the_page_itself_and_a_typed_address_are_answered(site: str, root: Path) -> None:
    assert asking(root).get("/api/runs", headers={"Sec-Fetch-Site": site}).status_code == 200


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_browser_leaves_port_80_out(name: str) -> None:
    """Of both headers; with the port they are the same."""
    app = Access(PlainTextResponse("in"), TOKEN, 80)
    cookie = {"Cookie": f"{cookie_name(80)}={TOKEN}"}
    client = TestClient(app, f"http://{name}")
    for port in ("", ":80"):
        headers = {**cookie, "Host": f"{name}{port}", "Origin": f"http://{name}{port}"}
        assert client.get("/", headers=headers).text == "in"
    for host in (f"{name}:{PORT}", "evil.example", f"{name}."):
        assert client.get("/", headers={**cookie, "Host": host}).status_code == 421
    assert client.get("/", headers={**cookie, "Origin": f"http://{name}:{PORT}"}).status_code == 403


def test_a_form_of_another_page_changes_nothing(root: Path) -> None:
    """A form can send no JSON, and a browser says where it stands."""
    client = asking(root, control=True)
    own, where = {"Origin": BASE}, "/api/runs/0/control"
    assert client.post(where, json={"action": "stop"}).status_code == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = client.post(where, content='{"action": "stop"}', headers={**own, "Content-Type": kind})
        assert answer.status_code == 415
    assert client.post(where, json={"action": "stop"}, headers=own).status_code == 404


@pytest.mark.parametrize("path", EVERYWHERE)
def test_every_answer_is_inert(path: str, root: Path) -> None:
    client: TestClient
    for client in (asking(root), stranger(root)):
        answer = client.get(path)
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
        assert "script-src 'self'" in HEADERS["Content-Security-Policy"]
        assert "unsafe" not in HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize(
    "path",
    ["/static/../config.json", "/static/%2e%2e/secret", "/static/..%2fsecret", "/static/%2e%2e%2fsecret",
     "/static//etc/passwd", "/static/%2fetc%2fpasswd", "/static/..%5csecret", "/static/shared/../../secret",
     "/static/shared/%2e%2e/%2e%2e/app.py",
     "/static/%00", "/static/link", "/static/%c0%ae%c0%ae/secret"],
)  # fmt: skip
def test_no_path_leads_out_of_the_page(path: str, root: Path, tmp_path: Path) -> None:
    page = root / "page"
    page.mkdir()
    (page / "index.html").write_text("page")
    (root / "secret").write_text("SECRET")
    (page / "link").symlink_to(root / "secret")
    client = asking(root, page=page)
    assert client.get("/static/index.html").text == "page"
    answer = client.get(path)
    assert answer.status_code in (400, 404, 500)
    assert "SECRET" not in answer.text
    assert "root:" not in answer.text
