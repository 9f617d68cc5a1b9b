"""What the page is told of runs: their list as it changes, curves, settings, pictures; and what it may ask."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from refimpl.sample.images.picture_files import write_grid
from refimpl.train.metrics.own_files import SHOWN
from refimpl.train.watch.control_file import CONTROL
from tests.studio.asking import BASE, MARKUP, add_rows, asking, begin_training, write_run

JSON = {"Origin": BASE}
LEAKED = ("SECRET", '": 777', "step-00000777", '"training"', '"stop"')  # of the run that links lead to


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs" / "tiny-001")


@pytest.fixture
def client(run: Path) -> TestClient:
    return asking(run.parent)


def told(client: TestClient, path: str, status: int = 200) -> Any:
    answer = client.get(path)
    assert answer.headers["content-type"] == "application/json"
    assert answer.status_code == status, answer.text
    return answer.json()


def only(client: TestClient) -> dict[str, Any]:
    (run,) = told(client, "/api/runs")["runs"]
    return run


def test_a_run_in_a_line(run: Path, client: TestClient) -> None:
    line = only(client)
    assert (run / "metrics.jsonl").stat().st_mtime == line.pop("updated")
    assert len(line.pop("id")) == 12
    assert line == {
        "name": "tiny-001", "state": "stopped", "step": 4, "steps": 10, "loss": 0.25, "heldout_loss": None,
        "images_per_second": 2.0, "mfu": None, "seconds_left": None, "rows": None, "broken_rows": None, "faults": 0,
        "quarantined": 0, "samples": 0, "has_report": False, "problem": "",
    }  # fmt: skip


def test_the_time_that_is_left_is_that_of_the_steps(run: Path, client: TestClient) -> None:
    """Six steps of two micro-batches of four images, at two images a second."""
    begin_training(run)
    assert (only(client)["state"], only(client)["seconds_left"]) == ("training", 6 * 2 * 4 / 2)
    add_rows(run, range(5, 11))
    assert only(client)["seconds_left"] == 0
    (run / ".lock").unlink()
    assert (only(client)["state"], only(client)["seconds_left"]) == ("finished", None)


@pytest.mark.parametrize(
    ("train", "stages", "images"),
    [({"pixel_budget": 64 * 64 * 3}, [], 3), ({"batch_size": 4}, [(0, 5), (3, 6), (9, 7)], 6)],
)
def test_images_of_a_step_follow_the_budget_or_the_stage(
    train: dict[str, int], stages: list[tuple[int, int]], images: int, tmp_path: Path
) -> None:
    table = {"train": {"steps": 10, "micro_batches": 2, **train},
             "stages": [{"from_step": step, "batch_size": size} for step, size in stages]}  # fmt: skip
    run = write_run(tmp_path / "runs" / "a", steps=3)
    (run / "config.json").write_text(json.dumps(table))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, "images_per_second": 1.0, "bucket": [64, 64]}) + "\n")
    begin_training(run)
    assert only(asking(run.parent))["seconds_left"] == 6 * 2 * images


def test_runs_come_and_vanish(run: Path, client: TestClient) -> None:
    second = write_run(run.parent / "group" / MARKUP.replace("/", "|"))
    add_rows(second, range(5, 6))
    names = {line["name"] for line in told(client, "/api/runs")["runs"]}
    assert names == {"tiny-001", f"group/{second.name}"}
    ids = {line["name"]: line["id"] for line in told(client, "/api/runs")["runs"]}
    assert told(client, f"/api/runs/{ids[f'group/{second.name}']}/metrics")["rows"] == 5
    shutil.rmtree(second)
    for path in ("", "/metrics", "/metrics?after=0-5"):
        error = told(client, f"/api/runs/{ids[f'group/{second.name}']}{path}", 404)
        assert error == {"error": "there is no such run, or its folder has vanished"}
    assert only(client)["name"] == "tiny-001"
    shutil.rmtree(run.parent)
    said = told(client, "/api/runs")
    assert said["runs"] == []
    assert said["problem"].endswith(
        "No such file or directory; name the folder of your runs: refimpl studio RUNS"
    )
    assert told(client, "/api/studio")["problems"] == [said["problem"]]


def test_one_run_may_be_named_itself_and_links_are_not_followed(run: Path, tmp_path: Path) -> None:
    assert only(asking(run))["name"] == "tiny-001"
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "link").symlink_to(run)
    assert told(asking(tmp_path / "others"), "/api/runs") == {"runs": [], "problem": ""}


def test_new_rows_follow_a_cursor(run: Path, client: TestClient) -> None:
    where = f"/api/runs/{only(client)['id']}/metrics"
    whole = told(client, where)
    assert whole["series"]["loss"] == {"steps": [1, 2, 3, 4], "values": [1, 1 / 2, 1 / 3, 1 / 4]}
    assert set(whole["series"]) == {"loss", "images_per_second", "loss_by_timestep/0"}
    assert (whole["first_step"], whole["last_step"], whole["rows"]) == (1, 4, 4)
    assert told(client, f"{where}?after={whole['cursor']}")["rows"] == []
    add_rows(run, range(5, 7))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": 0.')
        file.flush()
        new = told(client, f"{where}?after={whole['cursor']}")
        assert [row["step"] for row in new["rows"]] == [5, 6]
        file.write("25}\n")
    later = told(client, f"{where}?after={new['cursor']}")
    assert later["rows"] == [{"step": 7, "loss": 0.25}]
    assert only(client)["broken_rows"] == 0


def test_a_run_that_was_continued_is_read_anew(run: Path, client: TestClient) -> None:
    where = f"/api/runs/{only(client)['id']}/metrics"
    cursor = told(client, where)["cursor"]
    (run / "metrics.jsonl").unlink()
    add_rows(run, range(1, 4))
    again = told(client, f"{where}?after={cursor}")
    assert (again["reload"], again["rows"]) == (True, [])
    assert told(client, where)["series"]["loss"]["steps"] == [1, 2, 3]


@pytest.mark.parametrize(
    "cursor", ["", "x", "0", "0-", "-1", "0--1", "0-99", "1-0", "0-²", "9" * 5000, MARKUP]
)
def test_a_cursor_of_no_answer_means_to_begin_again(cursor: str, client: TestClient) -> None:
    where = f"/api/runs/{only(client)['id']}/metrics"
    assert told(client, where)["rows"] == 4
    assert client.get(where, params={"after": cursor}).json()["reload"] is True


@pytest.mark.parametrize(
    "query",
    ["from=x", "to=-1", "points=3", "points=5001", "points=1e3", "from=٣", f"from={'9' * 30}", "points=0x10"],
)
def test_numbers_out_of_range_are_refused_in_words(query: str, client: TestClient) -> None:
    name = query.split("=")[0]
    error = told(client, f"/api/runs/{only(client)['id']}/metrics?{query}", 400)["error"]
    assert error.startswith(f"{name}: a whole number from ")


def test_a_window_of_the_curves(client: TestClient) -> None:
    series = told(client, f"/api/runs/{only(client)['id']}/metrics?from=2&to=3")["series"]
    assert series["loss"]["steps"] == [2, 3]
    assert told(client, f"/api/runs/{only(client)['id']}/metrics?from=9")["series"] == {}


def test_what_differs_between_runs(run: Path, client: TestClient) -> None:
    write_run(run.parent / "other", train={"steps": 10, "batch_size": 8, "micro_batches": 2, "seed": 3})
    ids = {line["name"]: line["id"] for line in told(client, "/api/runs")["runs"]}
    pair = [ids["tiny-001"], ids["other"]]
    found = told(client, f"/api/differences?ids={','.join(pair)}")
    assert found == {"ids": pair, "differences": [
        {"key": "train.batch_size", "values": [4, 8]}, {"key": "train.seed", "values": [0, 3]},
    ]}  # fmt: skip
    for ids_given in ("", "a,b,c,d,e"):
        told(client, f"/api/differences?ids={ids_given}", 400)
    told(client, "/api/differences?ids=nothing", 404)


def test_grids_come_with_the_prompts_that_they_were_drawn_for(run: Path, client: TestClient) -> None:
    images = torch.rand(2, 3, 3, 8, 16)
    write_grid(images, run / "samples" / "step-00000004.png", ["a", MARKUP])
    Image.new("RGB", (5, 4)).save(run / "samples" / "step-00000002.png")  # by a version that noted nothing
    (run / "samples" / "step-00000003.png").write_bytes(b"half")
    (run / "samples" / "other.png").write_bytes(b"not a grid")
    details = told(client, f"/api/runs/{only(client)['id']}")
    first, second = details["sample_grids"]
    assert (first["step"], first["prompts"], first["columns"]) == (2, [""], 4)
    assert (second["step"], second["prompts"], second["columns"]) == (4, ["a", MARKUP], 3)
    assert (second["width"], second["height"], second["gap"]) == (3 * 16 + 4, 2 * 8 + 2, 2)
    answer = client.get(second["url"])
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == (run / "samples" / "step-00000004.png").read_bytes()


@pytest.mark.parametrize(
    "name",
    ["..%2fconfig.json", "%2e%2e/config.json", "config.json", "step-00000009.png", "step-00000001.png%00",
     "%2fetc%2fpasswd", "..%2f..%2fsamples%2fstep-00000004.png", "link", "step-00000007.png", "step-00000008.png",
     "STEP-00000004.png"],
)  # fmt: skip
def test_no_picture_leads_elsewhere(name: str, run: Path, client: TestClient) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(run / "secret.png")
    (run / "samples").mkdir()
    (run / "samples" / "step-00000007.png").symlink_to(run / "secret.png")
    (run / "samples" / "step-00000008.png").mkdir()
    where = f"/runs/{only(client)['id']}/samples/"
    assert client.get(f"{where}{name}").status_code == 404
    assert told(client, f"/api/runs/{only(client)['id']}")["state"] == "stopped"


@pytest.mark.parametrize("name", [*SHOWN, ".lock", CONTROL])
def test_no_file_of_a_run_is_read_through_a_link(name: str, run: Path, client: TestClient) -> None:
    """Not even one that holds what the run's own file would; the run stays in the list and says which it is."""
    secret = write_run(run.parent.parent / "secret", steps=9, train={"steps": 777})
    (secret / "faults.jsonl").write_text(
        '{"step": 777, "not_finite": "SECRET", "images": [{"id": "SECRET"}]}\n'
    )
    (secret / "quarantine.jsonl").write_text('{"path": "SECRET", "kind": "SECRET", "reason": "777"}\n')
    write_grid(torch.rand(1, 1, 3, 8, 8), secret / "samples" / "step-00000777.png", ["SECRET"])
    (secret / "report.html").write_text("SECRET")
    (secret / CONTROL).write_text('{"actions": ["stop"]}')
    begin_training(secret)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(secret / name)
    line = only(client)
    assert line["problem"] == (f"{name}: links in a run folder are not followed" if name in SHOWN else "")
    where = f"/api/runs/{line['id']}"
    details, curves = client.get(where), client.get(f"{where}/metrics")
    assert details.status_code == 200
    assert curves.status_code == (404 if name == "metrics.jsonl" else 200)
    if name == "metrics.jsonl":
        assert curves.json() == {"error": f"{name} can't be read: links in a run folder are not followed"}
    pictures = [f"/runs/{line['id']}/samples/step-00000777.png", f"/runs/{line['id']}/report.html"]
    for answer in (details, curves, *map(client.get, pictures)):
        assert not [word for word in LEAKED if word in answer.text]
    assert [client.get(path).status_code for path in pictures] == [404, 404]
    assert told(client, f"/api/differences?ids={line['id']}")["differences"] == []


def test_a_run_folder_may_itself_be_a_link(run: Path, tmp_path: Path) -> None:
    """Whoever starts the studio names it, and all that it holds is shown."""
    write_grid(torch.rand(1, 1, 3, 8, 8), run / "samples" / "step-00000004.png", ["a"])
    (run / "report.html").write_text("its report")
    (tmp_path / "link").symlink_to(run)
    client = asking(tmp_path / "link")
    line = only(client)
    assert (line["name"], line["step"], line["samples"], line["problem"]) == ("link", 4, 1, "")
    details = told(client, f"/api/runs/{line['id']}")
    assert client.get(details["sample_grids"][0]["url"]).status_code == 200
    assert client.get(details["report_url"]).text == "its report"
    assert told(client, f"/api/runs/{line['id']}/metrics")["rows"] == 4


def test_ids_are_no_paths(client: TestClient) -> None:
    for name in ("..", "%2e%2e", "..%2f..", "tiny-001", "%2fetc", "0" * 12, "a" * 9999):
        assert client.get(f"/api/runs/{name}").status_code == 404
        assert client.get(f"/api/runs/{name}/metrics").status_code == 404


def test_a_report_is_shown_without_scripts(run: Path, client: TestClient) -> None:
    where = f"/runs/{only(client)['id']}/report.html"
    assert told(client, where, 404) == {"error": "this run has no report yet: refimpl report RUN"}
    (run / "report.html").write_text(MARKUP)
    answer = client.get(where)
    assert answer.text == MARKUP
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none';")
    assert "script" not in policy
    assert told(client, f"/api/runs/{only(client)['id']}")["report_url"] == where


def test_a_file_too_large_to_be_shown_is_refused_in_words(
    run: Path, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refimpl.studio.run_routes.MOST_BYTES", 2**20)
    write_grid(torch.rand(1, 1, 3, 8, 8), run / "samples" / "step-00000004.png", ["a"])
    where = f"/runs/{only(client)['id']}"
    for name, path in (("report.html", "report.html"), ("step-00000004.png", "samples/step-00000004.png")):
        with (run / path).open("ab") as file:
            file.truncate(2**20)
        assert client.get(f"{where}/{path}").status_code == 200
        with (run / path).open("ab") as file:
            file.write(b"x")
        error = told(client, f"{where}/{path}", 413)["error"]
        assert error == f"{name} is larger than 1 MiB; open the file itself"


HOSTILE_FILES = {
    "config.json": [b"", b"{", b"[1]", b"\xff", b"[" * 100000, b'{"train": 3, "sample": [], "stages": {"a": 1}}',
                    b'{"train": {"steps": "<script>", "batch_size": []}, "stages": [1, {"batch_size": "x"}]}',
                    b'{"sample": {"prompts": "<script>", "seeds": {}}}', b'{"a":' * 900 + b"1" + b"}" * 900,
                    b"x" * (2**22 + 1)],
    "metrics.jsonl": [b"\n\n\n", b"<script>\n", b'{"step": "4"}\n', b'{"step": 4, "loss": "<script>", "bucket": 3}\n',
                      b'{"step": 1e400}\n', b'{"step": 5, "loss": 1e400, "mfu": NaN}\n', b'{"step": -1}\n',
                      b"[" * 99999 + b"\n",
                      b'{"step": 5, "loss": 1' + b"0" * 400 + b"}\n", b'{"step": 5, "bucket": [0, 0]}\n',
                      b"\x00" * 99],
    "faults.jsonl": [b"<script>\n", b'{"step": {}, "images": 3}\n',
                     b'{"not_finite": ["<script>"], "images": ["<script>"]}\n'],
    "quarantine.jsonl": [b'{"path": ["<script>"], "kind": null}\n', b"3\n"],
    ".lock": [b"", b"{}", b'{"pid": -1, "host": 3}', b'{"pid": 99999999999999999999999, "host": "HOST"}',
              b'{"pid": "1"}'],
    "control.json": [b"{", b'{"actions": "<script>"}'],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, content) for name, contents in HOSTILE_FILES.items() for content in contents],
    ids=lambda value: repr(value)[:30],
)
def test_whatever_a_file_holds_the_page_stays_up(name: str, content: bytes, run: Path) -> None:
    import socket

    good = write_run(run.parent / "good")
    begin_training(run)
    (run / name).write_bytes(content.replace(b"HOST", socket.gethostname().encode()))
    client = asking(run.parent)
    lines = told(client, "/api/runs")["runs"]
    assert {line["name"] for line in lines} == {good.name, run.name}
    for line in lines:
        details = client.get(f"/api/runs/{line['id']}")
        assert details.status_code == 200 or (name, details.status_code) == ("config.json", 404)
        curves = client.get(f"/api/runs/{line['id']}/metrics")
        assert curves.status_code == 200
        for answer in (details, curves):
            assert answer.headers["content-type"] == "application/json"
            assert "<" not in answer.text
    pair = ",".join(line["id"] for line in lines)
    assert client.get(f"/api/differences?ids={pair}").status_code in (200, 404)


def test_broken_rows_are_counted(run: Path, client: TestClient) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n{"loss": 3}\n{"step": 5}\n\n')
    whole = told(client, f"/api/runs/{only(client)['id']}/metrics")
    assert (whole["rows"], whole["broken_rows"]) == (5, 3)
    assert (only(client)["rows"], only(client)["broken_rows"]) == (5, 3)


def test_faults_and_quarantine_are_listed_newest_first(run: Path, client: TestClient) -> None:
    images = [{"id": MARKUP, "rank": 0, "timestep": 999, "sigma": 1.0, "loss": None}]
    rows = [{"step": step, "not_finite": "loss", "images": images} for step in range(300)]
    (run / "faults.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "quarantine.jsonl").write_text(
        json.dumps({"path": MARKUP, "kind": "damaged", "reason": "x"}) + "\n"
    )
    details = told(client, f"/api/runs/{only(client)['id']}")
    assert [row["step"] for row in details["fault_rows"]] == list(range(299, 99, -1))
    assert details["fault_rows"][0] == {"step": 299, "cause": "loss", "images": images}
    assert details["quarantine"] == [{"path": MARKUP, "kind": "damaged", "reason": "x"}]
    assert (details["faults"], details["quarantined"]) == (300, 1)


def test_a_run_is_asked_under_control_alone(run: Path) -> None:
    begin_training(run)
    for control in (False, True):
        client = asking(run.parent, control=control)
        where = f"/api/runs/{only(client)['id']}/control"
        answer = client.post(where, json={"action": "sample"}, headers=JSON)
        assert answer.status_code == (202 if control else 403)
        assert (run / CONTROL).exists() == control
    assert answer.json() == {"asked": ["sample"]}
    assert client.post(where, json={"action": "stop"}, headers=JSON).json() == {"asked": ["sample", "stop"]}
    assert told(client, f"/api/runs/{only(client)['id']}")["asked"] == ["sample", "stop"]
    assert told(client, "/api/studio")["control"] is True
    (run / ".lock").unlink()
    answer = client.post(where, json={"action": "stop"}, headers=JSON)
    assert (answer.status_code, answer.json()["error"]) == (
        409,
        "tiny-001 is not being trained on this machine",
    )


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "3", '{"action": "rm"}', '{"action": ["stop"]}', '{"action": null}', "[" * 99999]
)
def test_other_actions_are_refused(body: str, run: Path) -> None:
    begin_training(run)
    client = asking(run.parent, control=True)
    where = f"/api/runs/{only(client)['id']}/control"
    answer = client.post(where, content=body, headers={**JSON, "Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]) == (400, "action: one of sample, checkpoint, stop")
    assert not (run / CONTROL).exists()


def test_other_methods_are_refused(client: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = client.request(method, "/api/runs", headers={**JSON, "Content-Type": "application/json"})
        assert (answer.status_code, answer.json()) == (405, {"error": "this address takes no such request"})


def test_a_run_of_absurdly_many_steps_leaves_the_list(run: Path, client: TestClient) -> None:
    begin_training(run)
    settings = json.loads((run / "config.json").read_text())
    settings["train"]["steps"] = 10**400
    (run / "config.json").write_text(json.dumps(settings))
    assert (only(client)["steps"], only(client)["seconds_left"]) == (None, None)


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "config.json", "faults.jsonl", "quarantine.jsonl", ".lock"]
)
def test_a_pipe_in_a_run_folder_is_not_waited_for(name: str, run: Path, client: TestClient) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    assert told(client, f"/api/runs/{only(client)['id']}")["name"] == "tiny-001"


def test_a_cursor_of_too_many_digits_starts_anew(client: TestClient) -> None:
    run = only(client)["id"]
    assert told(client, f"/api/runs/{run}/metrics?after=0-{'9' * 5000}")["reload"] is True
