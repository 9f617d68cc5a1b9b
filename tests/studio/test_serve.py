"""The real process: its address, its port, new rows in time, its memory; and what it says when it can't begin."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from refimpl.commands.studio import studio_command
from refimpl.errors import InputError
from refimpl.studio import serve
from tests.data.index.test_parallel_read import build_here
from tests.studio.asking import add_rows, write_run
from tests.tolerances import NEW_ROW_SECONDS, STUDIO_BYTES

STUDIO = "import sys; from refimpl.commands.main import main; sys.argv[0] = 'refimpl'; main()"
RAW_PATHS = (
    "/static/../../../../etc/passwd", "/runs/../secret", "/../secret", "//etc/passwd", "/static/..\\..\\secret", "*",
    "http://evil.example/api/runs", "/static/%2e%2e/%2e%2e/access.py", "/\x00", "/api/runs/../../secret",
)  # fmt: skip


@contextmanager
def studio(*words: str, **environment: str) -> Iterator[tuple[httpx2.Client, subprocess.Popen[str], str]]:
    """A studio of its own process at a free port, a client with its cookie, and what it printed first."""
    call = [sys.executable, "-c", STUDIO, "studio", *words, "--port", "0"]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env=os.environ | environment)  # fmt: skip
    assert process.stdout is not None
    try:
        said = ""
        while not (address := process.stdout.readline()).startswith("http"):
            assert address, said
            said += address
        with httpx2.Client(base_url=address.split("/?")[0], timeout=60) as client:
            assert client.get(address.strip()).status_code == 303
            yield client, process, said
    finally:
        process.terminate()
        process.wait(timeout=30)


def resident(process: subprocess.Popen[str]) -> int:
    """Bytes of memory that a process holds."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def test_a_new_row_is_answered_in_time(tmp_path: Path) -> None:
    """And a card that torch can't see is no matter here: the server never asks for one, nor loads torch."""
    run = write_run(tmp_path / "runs" / "a", train={"steps": 10, "device": "cuda", "micro_batches": 1})
    with studio(str(run.parent), CUDA_VISIBLE_DEVICES="99") as (client, process, said):
        assert said == ""
        (line,) = client.get("/api/runs").json()["runs"]
        where = f"/api/runs/{line['id']}/metrics"
        cursor = client.get(where).json()["cursor"]
        add_rows(run, range(5, 6))
        began = time.monotonic()
        rows = client.get(where, params={"after": cursor}).json()["rows"]
        assert [row["step"] for row in rows] == [5]
        assert time.monotonic() - began < NEW_ROW_SECONDS
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libtorch" not in maps
        assert resident(process) < STUDIO_BYTES


def test_it_is_reached_from_this_machine_alone(tmp_path: Path) -> None:
    at = serve.listening(0)
    with at:
        assert at.getsockname()[0] == "127.0.0.1"


def test_raw_paths_and_hosts_reach_nothing(tmp_path: Path) -> None:
    """As no client would send them, over a socket."""
    (tmp_path / "secret").write_text("SECRET")
    run = write_run(tmp_path / "runs" / "a")
    with studio(str(run.parent)) as (client, process, _):
        port = client.base_url.port
        cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        for target in RAW_PATHS:
            with socket.create_connection(("127.0.0.1", port or 0)) as raw:
                head = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nCookie: {cookie}\r\n"
                raw.sendall(f"{head}Connection: close\r\n\r\n".encode())
                answer = b"".join(iter(lambda: raw.recv(65536), b""))
            assert answer.split()[1] in (b"400", b"404", b"405"), answer[:200]
            for secret in (b"SECRET", b"root:", b"hmac"):
                assert secret not in answer
        assert client.get("/api/runs").status_code == 200
        assert process.poll() is None


def test_what_is_wrong_with_what_was_named_is_said_and_it_serves(tmp_path: Path) -> None:
    with studio(str(tmp_path / "runs"), "--data", str(tmp_path / "index")) as (client, _, said):
        assert re.fullmatch(
            r"problem: .*runs: No such file or directory; name the folder of your runs: refimpl studio RUNS\n"
            r"problem: .*index is not there; make one: refimpl data index FOLDER -o .*index\n", said
        )  # fmt: skip
        assert len(client.get("/api/studio").json()["problems"]) == 2
        write_run(tmp_path / "runs" / "a")
        assert len(client.get("/api/runs").json()["runs"]) == 1


def test_a_port_in_use_is_named() -> None:
    with serve.listening(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            InputError, match=rf"port {port} is in use; choose another with --port, or 0 for any"
        ):
            studio_command(["--port", str(port)])


def test_a_port_that_is_not_ours_to_open_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as those below 1024 for most accounts."""

    class Refused(socket.socket):
        def bind(self, address: object, /) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("refimpl.studio.serve.socket.socket", Refused)
    with pytest.raises(
        InputError, match="port 80: Permission denied; choose another with --port, or 0 for any"
    ):
        serve.listening(80)


def test_without_the_library_the_line_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'needs the starlette package: pip install "starlette>=1.0"'):
        studio_command([])


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_out_of_range_is_refused(port: str) -> None:
    with pytest.raises((InputError, SystemExit)):
        studio_command([f"--port={port}"])


@pytest.mark.slow
def test_sixty_thousand_thumbnails_scroll_in_bounded_memory(tmp_path: Path) -> None:
    """Of real JPEGs of a megapixel and PNGs of half of one, asked for by four at once as a page does."""
    from concurrent.futures import ThreadPoolExecutor

    noise = np.random.default_rng(0)
    for number in range(60):
        pixels = noise.integers(0, 255, (40, 52, 3), np.uint8)
        image = Image.fromarray(pixels).resize((1040, 800) if number % 3 else (832, 640))
        image.save(tmp_path / f"{number:03d}.{'jpg' if number % 3 else 'png'}")
    many = tmp_path / "many"
    many.mkdir()
    rows = 60_000
    for number in range(rows):
        source = tmp_path / f"{number % 60:03d}.{'jpg' if number % 3 else 'png'}"
        (many / f"{number:05d}{source.suffix}").hardlink_to(source)
    (tmp_path / "runs").mkdir()
    build_here(many, tmp_path / "index", allow_missing=True)
    with studio(str(tmp_path / "runs"), "--data", str(tmp_path / "index")) as (client, process, _):
        most = 0

        def screen(first: int) -> None:
            page = client.get("/api/data/rows", params={"from": first, "count": 50}).json()
            for row in page["rows"][:: 1 if first % 1000 == 0 else 10]:
                assert client.get(row["thumbnail"]).status_code == 200

        with ThreadPoolExecutor(4) as asks:
            for _ in asks.map(screen, range(0, rows, 50)):
                most = max(most, resident(process))
        print(json.dumps({"most": most}))
        assert most < STUDIO_BYTES
