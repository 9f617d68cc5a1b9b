"""`refimpl data check` and `tags`: what they print and the pages they write."""

import os
import shutil
from pathlib import Path

import pytest

from refimpl.commands.data.index import build
from refimpl.commands.main import dispatch
from refimpl.data.index.record import IndexOptions
from refimpl.data.tags import TagCounts
from refimpl.errors import InputError
from refimpl.report import style
from refimpl.report.data_page import survey_lines, survey_page, weight_lines, weight_page
from tests.data.index.test_data_set import add
from tests.data.survey.test_survey import BUCKETS, survey, table_of, weight_survey
from tests.report.test_run_page import HOSTILE, Reader
from tests.train import runs


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three good images, one pruned at a limit, and problems of three kinds."""
    for number, size in enumerate([(64, 64), (64, 32), (20, 40), (400, 10)]):
        add(
            tmp_path / "images", f"{number}.png", f"artist:bob, tag {number}, <script>alert(1)</script>", size
        )
    add(tmp_path / "images", "empty.png").write_bytes(b"")
    add(tmp_path / "images", "bad.png", b"caf\xe9")
    add(tmp_path / "images", "1.jpg", "again")
    return tmp_path / "images"


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    dispatch(["data", *words])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["index", "check", "tags"])
def test_a_cpu_quota_bounds_the_processes_that_read(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container may use two of 64 CPUs, although all are in its affinity mask."""

    def processes(*arguments: object) -> None:
        raise InputError(f"{arguments[3 if command == 'index' else 2]} processes")

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr("refimpl.run.threads.cpu_quota", lambda _: 2.5)
    monkeypatch.setattr(
        f"refimpl.commands.data.{command}.{'build' if command == 'index' else 'looked_at'}", processes
    )
    out = ["--out", str(tmp_path / "index")] if command == "index" else []
    with pytest.raises(InputError, match=r"^2 processes"):
        dispatch(["data", command, str(tmp_path), *out])


def test_check_says_everything_of_a_source(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", str(images), "--max-aspect-error", "1", "--processes", "1", "--listed", "2"]
    out = printed(words, capsys)
    assert f"4 images in {images}" in out
    assert "(N §4.1.3: 0.033)" in out
    assert "left out: 3; pruned, too far from every bucket: 1" in out
    assert "smaller than their bucket, and so upscaled: 3; without a caption: 0" in out
    assert "with an edge below 256 px: 4, 100.00% (S Fig. 2: 39%)" in out
    assert f"problem: caption, 1\n  file and reason\n  {images}/bad.txt: not UTF-8 at byte 3 (0xe9)" in out
    assert f"two images have the id '1': {images}/1.jpg and {images}/1.png" in out
    assert f"{images}/empty.png: the file is empty" in out
    assert f"{images}/3.png" in out
    assert "artist" in out
    assert "bob (3)" in out
    assert "width (px)" in out
    (row,) = [line.split() for line in out.splitlines() if line.split()[:2] == ["1024", "1024"]]
    assert row[3:] == ["1", "33.33%"]


def test_check_of_an_index_and_of_its_files(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bad.txt", "empty.png", "1.jpg", "bad.png"):
        (images / name).unlink()
    build((str(images),), tmp_path / "index", IndexOptions(), 1, show=False)
    assert "left out: 0" in printed(["check", str(tmp_path / "index"), "--buckets", "sdxl"], capsys)
    (images / "2.png").unlink()
    out = printed(["check", str(tmp_path / "index"), "--files"], capsys)
    assert f"problem: missing, 1\n  file and reason\n  {images}/2.png: there is no such file" in out


def test_check_names_images_without_a_caption(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("0", "2"):
        (images / f"{name}.txt").unlink()
    out = printed(["check", str(images), "--processes", "1", "--listed", "1"], capsys)
    assert "without a caption: 2" in out
    assert f"without a caption, 2\n  file\n  {images}/0.png\n  and 1 more\n" in out


def test_check_reports_the_plan_of_both_modes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """11 square images and 10 upright ones on two ranks: one is dropped, and two ranks' shapes differ."""
    for number in range(21):
        add(tmp_path / "images", f"{number:02}.png", "x", (40, 40) if number % 2 else (32, 64))
    page = tmp_path / "page.html"
    words = ["check", str(tmp_path / "images"), "--processes", "1", "--batch-size", "2", "--world-size", "2"]
    out = printed([*words, "--listed", "1", "--html", str(page)], capsys)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "plan of epoch 0, by mode" in lines
    assert "global paper" in lines
    assert "steps 5 5" in lines
    assert "images dropped 1 1" in lines
    (idle,) = [line for line in lines if line.startswith("ranks' time waiting")]
    assert idle.split()[-2] == "0.00%"
    at = lines.index("batches of epoch 0, by mode")
    counts = [line.split() for line in lines[at + 2 : lines.index("", at)]]
    assert sum(int(row[2]) for row in counts) == 5
    assert sum(int(row[3]) for row in counts) == 10
    assert "dropped in epoch 0, mode paper" in lines
    assert "plan of epoch 0, by mode" in "".join(Reader(page.read_text()).visible)
    assert "plan of epoch 0" not in printed(["check", str(tmp_path / "images"), "--processes", "1"], capsys)
    capsys.readouterr()
    with pytest.raises(InputError, match="2 ranks × batch size 50 = 100"):
        dispatch(["data", *words, "--batch-size", "50"])
    out = capsys.readouterr().out
    assert "plan of epoch 0, by mode" not in out
    assert "no plan of epoch 0: 21 images are fewer than one global batch" in out
    assert {"problems", "buckets"} & set(out.split())  # all else is shown first


def test_data_command_prints_buckets_and_tags(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a configuration: every stage's images with its buckets and its plan, as training would read them."""
    toml = runs.write_toml(root, tmp_path / "a.toml", tmp_path)
    out = printed(["check", toml, "--processes", "1"], capsys)
    assert "stage 0 from step 0: 4 images per rank and step; data.plan = 'global'" in out
    assert f"18 images in {root}/train" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["64", "32", "2.000", "5", f"{5 / 18:.2%}"] in rows
    assert any(row[:1] == ["colour"] for row in rows)
    assert "plan of epoch 0, by mode" in out
    assert "images dropped" in out
    assert "batches of leftovers from several buckets" in out
    assert "ranks' time waiting for a step's largest shape" in out
    assert "batches of epoch 0, by mode" in out
    # Aspects 2, 1/2 and 1 have their buckets; 40 × 56 goes to 1, 2/7 away: 4 images of 18.
    assert f"mean |aspect error|: {4 / 18 * 2 / 7:.4f}" in out
    assert "smaller than their bucket, and so upscaled: " in out
    assert printed([toml, "--processes", "1"], capsys) == out  # the short spelling
    out = printed([toml, "--folder", str(root / "heldout"), "--processes", "1"], capsys)
    assert f"4 images in {root}/heldout" in out


def test_check_of_a_configuration_obeys_the_command_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = runs.write_toml(root, tmp_path / "a.toml", tmp_path)
    words = ["check", toml, "--processes", "1"]
    assert "plan of epoch 0" not in printed([*words, "--batch-size", "0"], capsys)
    assert "1024   1024" in printed([*words, "--buckets", "sdxl"], capsys)
    assert "pruned, too far from every bucket: 4" in printed([*words, "--max-aspect-error", "0.1"], capsys)
    for asked in ([], ["--batch-size", "4"]):
        with pytest.raises(InputError, match="50 ranks × batch size 4 = 200"):
            dispatch(["data", *words, "--world-size", "50", *asked])
        out = capsys.readouterr().out
        assert "no plan of epoch 0: " in out
        assert "50 ranks × batch size 4 = 200" in out


def test_a_plan_that_cannot_be_made_is_one_problem_among_others(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three ranks do not share four micro-batches, and an image is empty: both are shown, and both end the check."""
    shutil.copytree(root, tmp_path / "data")
    damaged = sorted((tmp_path / "data" / "train").glob("*.png"))[0]
    damaged.write_bytes(b"")
    toml = runs.write_toml(tmp_path / "data", tmp_path / "a.toml", tmp_path, train={"micro_batches": 4})
    page = tmp_path / "page.html"
    with pytest.raises(InputError) as refused:
        dispatch(["data", "check", toml, "--processes", "1", "--world-size", "3", "--html", str(page)])
    out = capsys.readouterr().out
    reason = "3 ranks do not share train.micro_batches 4 evenly"
    for shown in (out, page.read_text()):
        assert f"no plan of epoch 0: {reason}" in shown
        assert "problem: empty, 1" in shown
        assert "17 images in " in shown
    assert reason in str(refused.value)
    assert f"{damaged.name}: the file is empty" in str(refused.value)


def test_the_problems_of_every_stage_are_told_together(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [{"from_step": 0, "folder": str(tmp_path / "none")}, {"from_step": 1, "batch_size": 999}]
    toml = runs.write_toml(root, tmp_path / "a.toml", tmp_path, stages=stages)
    with pytest.raises(InputError, match=r"^stage 0: .*none: there is no such folder") as refused:
        dispatch(["data", "check", toml, "--processes", "1"])
    assert "\nstage 1: 18 images are fewer than one global batch" in str(refused.value)
    assert "no plan of epoch 0: 18 images are fewer than one global batch" in capsys.readouterr().out


def test_check_of_stages_writes_a_page_for_each(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [
        {"from_step": 0, "batch_size": 2},
        {"from_step": 1, "folder": str(root / "heldout"), "buckets": {"preset": "sdxl"}},
    ]
    toml = runs.write_toml(root, tmp_path / "a.toml", tmp_path, stages=stages)
    out = printed(["check", toml, "--processes", "1", "--html", str(tmp_path / "page.html")], capsys)
    assert "stage 0 from step 0: 2 images per rank and step" in out
    assert "stage 1 from step 1: 4 images per rank and step" in out
    for number, folder in enumerate(("train", "heldout")):
        assert f"images in {root / folder}" in (tmp_path / f"page-{number}.html").read_text()


def test_check_of_a_pixel_budget_plans_by_bucket(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = runs.write_toml(root, tmp_path / "a.toml", tmp_path, train={"pixel_budget": 2 * 64 * 64})
    out = printed(["check", toml, "--processes", "1"], capsys)
    assert "images per rank and step; data.plan = 'global'" in out
    lines = out.splitlines()
    at = lines.index("plan of epoch 0, by mode")
    assert lines[at + 1].split() == ["global"]  # mode paper has one batch size


def test_check_of_a_configuration_ends_where_training_would(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(root, tmp_path / "data")
    damaged = sorted((tmp_path / "data" / "train").glob("*.png"))[0]
    damaged.write_bytes(b"")
    toml = runs.write_toml(tmp_path / "data", tmp_path / "a.toml", tmp_path)
    with pytest.raises(InputError, match=f"{damaged.name}: the file is empty"):
        dispatch(["data", "check", toml, "--processes", "1"])
    assert f"{damaged}: the file is empty" in capsys.readouterr().out
    bare = runs.write_toml(root, tmp_path / "b.toml", tmp_path, data={"folder": ""})
    with pytest.raises(InputError, match=r"data\.folder is empty; name a folder of images"):
        dispatch(["data", bare])


def test_tags_says_what_weighs_most(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("bad.txt", "empty.png", "1.jpg", "bad.png"):
        (images / name).unlink()
    (images / "3.txt").write_text("artist:bob, artist:ann, rare")
    out = printed(["tags", str(images), "--weights.beta", "1", "--processes", "1", "--listed", "1"], capsys)
    assert "4 images in" in out
    assert "heaviest images" in out
    assert "  general  5     6     <script>alert(1)</script> (2)  tag 2 (1)" in out
    assert "█" in out


@pytest.mark.parametrize("command", ["check", "tags"])
def test_pages_hold_no_script(
    command: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    out = printed([command, str(images), "--html", str(page), "--processes", "1"], capsys)
    assert f"wrote {page}" in out
    reader = Reader(page.read_text())
    assert not [name for name, _ in reader.elements if name == "script"]
    assert "<script>alert(1)</script>" in "".join(reader.visible)
    sources = [attributes["src"] for name, attributes in reader.elements if name == "img"]
    assert len(sources) == {"check": 3, "tags": 1}[command]
    assert all(str(source).startswith("data:image/svg+xml;base64,") for source in sources)


def test_hostile_names_stay_text() -> None:
    hostile = {HOSTILE: (HOSTILE, "\x1b[31mred\x07")}
    table = table_of([(9, 9)], [hostile], {HOSTILE: HOSTILE, "caf\udce9\x1b": "empty"})
    found, weights = survey(table, BUCKETS), weight_survey(table, TagCounts())
    for markup in (survey_page(HOSTILE, found, 5), weight_page(HOSTILE, weights)):
        reader = Reader(markup)
        assert not {"script", "b"} & {name for name, _ in reader.elements}
        assert not [name for _, attributes in reader.elements for name in attributes if name.startswith("on")]
        assert HOSTILE in "".join(reader.visible)
        markup.encode()
        assert all(letter.isprintable() or letter in "\n\t" for letter in markup)
    assert r"\x1b[31mred\x07" in weight_page("", weights)
    for line in (*survey_lines(HOSTILE, found, 5), *weight_lines("\x1b", weights)):
        assert line.isprintable()


def test_pages_of_nothing_are_drawn() -> None:
    assert "0 images" in survey_page("empty", survey(table_of([]), BUCKETS), 5)
    assert "0 images" in weight_page("empty", weight_survey(table_of([]), TagCounts()))


def test_plots_without_matplotlib_say_what_to_install(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise InputError("matplotlib is not installed; run: pip install matplotlib")

    monkeypatch.setattr(style, "matplotlib_module", missing)
    with pytest.raises(InputError, match="matplotlib is not installed"):
        dispatch(["data", "check", str(images), "--processes", "1", "--html", str(tmp_path / "page.html")])
    assert not (tmp_path / "page.html").exists()


def test_usage_names_the_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"]):
        out = printed(words, capsys)
        assert all(f"  {name}" in out for name in ("index", "check", "tags"))
        assert "CONFIG" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "nowhere"], "nowhere: there is no such folder"),
        (["check", ".", "--html", "."], r"--html \. is a folder"),
        (["check", ".", "--buckets", "novelai"], "the nearest is 'novelai_v"),
        (["tags", "nowhere"], "nowhere: there is no such folder"),
        (["check", "tinny"], "no such preset; the nearest is 'tiny'"),
        (["check", ".", "--folder", "x"], "--folder x replaces the images of a configuration"),
        (["chekc", "."], "'chekc' is no command of refimpl data; the nearest is 'check'"),
        (["."], r"look at a data set with `refimpl data check \.`"),
    ],
)
def test_bad_arguments_are_named(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dispatch(["data", *words])


@pytest.mark.parametrize("words", [["--batch-size", "-1"], ["--world-size", "0"], ["--seed", "-1"]])
def test_settings_of_no_plan_are_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        dispatch(["data", "check", ".", *words])
    assert ending.value.code == 2
    assert " ".join(words) in capsys.readouterr().err
