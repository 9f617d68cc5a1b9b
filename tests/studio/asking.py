"""A studio in this process and a client that has its cookie, over made-up runs and a small index."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from anyio.from_thread import BlockingPortal
from starlette.testclient import TestClient

from refimpl.data.config import BucketConfig
from refimpl.run.config import Config
from refimpl.studio.app import make_app
from refimpl.studio.browsed import Browsed
from refimpl.studio.run_routes import Runs
from refimpl.tables import from_table, to_table

PORT, TOKEN = 8430, "a-token"
BASE = f"http://127.0.0.1:{PORT}"
UNET = {"context_dim": 96, "vector_dim": 1600}  # those of the tiny towers
MARKUP = "<script>alert(1)</script>\"'&"


portal: BlockingPortal | None = None  # the tests' event loop


def settings(**sections: Any) -> dict[str, Any]:
    """The settings of a run as its folder holds them."""
    table = {"data": {"folder": "x"}, "text": {"towers": "tiny"}, "unet": UNET, **sections}
    return to_table(from_table(Config, table, "test"))


def write_run(path: Path, steps: int = 4, **sections: Any) -> Path:
    """A run folder with a row for each step, of 10."""
    path.mkdir(parents=True)
    train = {"steps": 10, "batch_size": 4, "micro_batches": 2}
    (path / "config.json").write_text(json.dumps(settings(**{"train": train, **sections})))
    add_rows(path, range(1, steps + 1))
    return path


def add_rows(run: Path, steps: range) -> None:
    """Appends rows as a run does."""
    with (run / "metrics.jsonl").open("a") as file:
        for step in steps:
            row = {"step": step, "loss": 1 / step, "images_per_second": 2.0, "loss_by_timestep": [0.5, None]}
            file.write(json.dumps(row) + "\n")


def begin_training(run: Path) -> None:
    """Makes it look as if this process trained there."""
    (run / ".lock").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": ""}))


def data_settings(**changes: Any) -> Config:
    """Settings of the data: small buckets, three wide and three high."""
    defaults = from_table(Config, {"text": {"towers": "tiny"}, "unet": UNET}, "test")
    buckets = BucketConfig(max_area=64 * 64, max_side=128, min_side=32, step=32)
    return replace(defaults, buckets=buckets, **changes)


def asking(
    root: Path, data: Browsed | None = None, control: bool = False, page: Path | None = None
) -> TestClient:
    """A client with the cookie."""
    client = stranger(root, data, control, page)
    assert client.get(f"/?token={TOKEN}", follow_redirects=False).status_code == 303
    return client


def stranger(
    root: Path, data: Browsed | None = None, control: bool = False, page: Path | None = None
) -> TestClient:
    """A client without the cookie. page  as `make_app` takes it; the runs' folder where it does not matter"""
    app = make_app(Runs(root, control), data, TOKEN, PORT, page or root)
    client = TestClient(app, BASE, raise_server_exceptions=False)
    client.portal = portal
    return client
