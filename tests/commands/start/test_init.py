"""`refimpl init`: from a folder of images to a first logged step in two commands, and everything that is refused."""

import io
import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from refimpl.commands.main import dispatch
from refimpl.commands.start.first import estimate_options
from refimpl.run.presets import load_config
from refimpl.train.budget.cards import CARDS
from tests.commands.endings import ending
from tests.run.here.test_machine import without_libraries
from tests.train import runs

SHORT = ("--latents.train-steps", "1", "--train.steps", "1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("refimpl.train.first.card.unseen_gpu", lambda: "")


def rows(run: str) -> list[dict]:
    return [json.loads(line) for line in (Path("runs") / run / "metrics.jsonl").read_text().splitlines()]


def odd_images(folder: Path) -> None:
    """Of odd sizes and kinds: smaller than any bucket, long, grey, with alpha, and two of three without a caption."""
    folder.mkdir()
    for number, (mode, size) in enumerate(
        [("RGB", (1, 1)), ("L", (7, 300)), ("RGBA", (40, 30)), ("P", (64, 64))]
    ):
        Image.new(mode, size, 1).save(folder / f"{number}.png")
    (folder / "0.txt").write_text("character:alice, red", encoding="utf-8")
    (folder / "1.caption").write_text("", encoding="utf-8")
    (folder / "notes.md").write_text("not an image")


def test_two_commands_from_images_to_a_first_logged_step(capsys: pytest.CaptureFixture[str]) -> None:
    odd_images(Path("my images"))
    code, out, error = ending(dispatch, ["init", "my images", "--yes", *SHORT], capsys)
    assert (code, error) == (0, "")
    assert "images: 4 in my images, 3 without a caption, trained with an empty one\n" in out
    assert "train with:  refimpl train 'my images.toml'\n" in out
    assert sorted(os.listdir()) == ["my images", "my images.toml"]
    code, out, _ = ending(dispatch, ["train", "--config", "my images.toml"], capsys)
    assert code == 0
    (logged,) = [row for row in rows("my images-001") if "loss" in row]
    assert logged["step"] == 1
    assert logged["loss"] > 0


def test_one_image_and_a_checkpoint(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("one").mkdir()
    Image.new("RGB", (20, 30)).save("one/a.jpg")
    words = ["init", "one", "--yes", "--checkpoint", str(trained), "--train.steps", "1", "--lora.rank", "2"]
    code, out, error = ending(dispatch, words, capsys)
    assert (code, error) == (0, "")
    assert f"starts from: {trained} (run, float32, predicts v:" in out
    assert "trains a LoRA of rank 2" in out
    config = load_config("one.toml")
    assert (config.train.batch_size, config.lora.rank, config.train.init_from) == (1, 2, str(trained))
    code, _, error = ending(dispatch, ["train", "one.toml"], capsys)
    assert code == 0, error
    assert [row["step"] for row in rows("one-001") if "loss" in row] == [1]


def test_the_card_is_planned_for(root: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "init",
        str(root / "train"),
        "--yes",
        "--checkpoint",
        str(trained),
        "--gpu",
        "rtx4090",
        "--train",
        "whole",
    ]
    code, out, _ = ending(dispatch, words, capsys)
    assert code == 0
    assert f"card: {CARDS['rtx4090'].name}, of whose 23.5 GiB the run needs " in out
    text = Path("train.toml").read_text()
    assert f"memory plan for {CARDS['rtx4090'].name}" in " ".join(text.replace("\n# ", " ").split())


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--train.device", "cuda"], "train.device 'cuda'"),
        (["--optimizer.kind", "adamw8bit"], "optimizer.kind 'adamw8bit'"),
    ],
)
def test_what_this_machine_lacks_is_refused_or_said_of_another(
    words: list[str], what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(
        "refimpl.run.here.machine.LIBRARIES", {"adamw8bit": "torchao", "prodigy": "prodigyopt"}
    )
    without_libraries(monkeypatch)
    runs.write_images(Path("full"), 2)
    code, out, error = ending(dispatch, ["init", "full", "--yes", *words], capsys)
    assert (code, out) == (2, "")
    assert error.startswith(f"error: {what}")
    assert os.listdir() == ["full"]
    code, out, error = ending(dispatch, ["init", "full", "--yes", "--gpu", "rtx4090", *words], capsys)
    assert (code, error) == (0, "")
    assert f"before it trains: {what}" in out
    assert f"before it trains: {what}" in Path("full.toml").read_text()


def test_the_estimate_that_is_named_gives_a_speed(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small network has no roofline, and a CPU neither: only measured steps say how fast it is."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    _, out, _ = ending(dispatch, ["init", str(root / "train"), "--yes"], capsys)
    assert out.endswith("speed and hours:  refimpl estimate train.toml --measure\n")
    text = Path("train.toml").read_text()
    assert "# speed and hours:  refimpl estimate train.toml --measure\n" in text
    full, small = load_config("sdxl_base"), load_config("tiny")
    assert estimate_options(full, CARDS["rtx4090"], "RTX 4090") == "--gpu 'RTX 4090'"
    assert estimate_options(full, CARDS["h100"], "auto") == ""
    assert estimate_options(small, CARDS["h100"], "h100") == "--measure"
    assert estimate_options(full, None, "cpu") == "--measure"


def test_every_choice_is_explained(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ending(dispatch, ["init", str(root / "train"), "--yes", "--gpu", "cpu"], capsys)
    lines = Path("train.toml").read_text().splitlines()
    bare = [
        line
        for above, line in pairwise(lines)
        if " = " in line and line[0] != "#" and not above.startswith("#")
    ]
    assert bare == []
    text = " ".join("\n".join(lines).replace("\n# ", " ").split())
    for why in ("the tiny preset's, for a small network", "as N §4 trains", "it needs no compiled extension"):
        assert f"Here: {why}" in text


def asked(answers: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the command on a terminal with these answers."""
    terminal = io.StringIO(answers)
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin", terminal)
    dispatch(words)
    assert terminal.read() == ""


def test_what_is_not_given_is_asked(
    root: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(f"nowhere\n{root / 'train'}\n{trained}\nwhole\n7\n", ["init"], monkeypatch)
    said = capsys.readouterr().out
    assert "nowhere: there is no such folder" in said
    config = load_config("train.toml")
    assert (config.train.steps, config.lora.rank, config.train.init_from) == (7, 0, str(trained))


def test_return_takes_every_default(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked("\n\n", ["init", str(root / "train")], monkeypatch)
    on_terminal = Path("train.toml").read_text().partition("# images:")[2]
    Path("train.toml").unlink()
    ending(dispatch, ["init", str(root / "train"), "--yes"], capsys)
    assert Path("train.toml").read_text().partition("# images:")[2] == on_terminal


def test_images_behind_links_are_read_where_that_is_asked(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    for path in sorted((root / "train").iterdir()):
        (links / path.name).symlink_to(path)
    code, _, error = ending(dispatch, ["init", str(links), "--yes"], capsys)
    assert code == 2
    assert "data.allow_outside = true" in error
    code, _, error = ending(dispatch, ["init", str(links), "--yes", "--data.allow-outside"], capsys)
    assert (code, error) == (0, "")
    assert load_config("links.toml").data.allow_outside


def full_size(path: str) -> object:
    from tests.train.first.test_choose import SDXL

    return SDXL


def test_a_full_size_checkpoint_needs_a_card(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("refimpl.commands.start.first.look_at_checkpoint", full_size)
    Path("model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    code, _, error = ending(
        dispatch, ["init", str(root / "train"), "--yes", "--checkpoint", "model.safetensors"], capsys
    )
    assert code == 2
    assert "torch sees no GPU here, and model.safetensors is too large for a CPU" in error
    code, _, error = ending(
        dispatch,
        ["init", str(root / "train"), "--yes", "--checkpoint", "model.safetensors", "--gpu", "cpu"],
        capsys,
    )
    assert code == 2
    assert "comes without a tokenizer, and there is none beside it" in error
    assert os.listdir() == ["model.safetensors"]


def test_unreadable_files_are_listed_as_training_would(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.write_images(Path("bad"), 3)
    Path("bad/001.png").write_bytes(b"not an image")
    code, _, error = ending(dispatch, ["init", "bad", "--yes"], capsys)
    assert code == 2
    assert "1 of 3 images can't be used" in error
    assert "bad/001.png" in error
    assert os.listdir() == ["bad"]


def test_a_folder_of_broken_images_alone_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken").mkdir()
    for name, content in {"a.png": b"\x89PNG\r\n\x1a\n", "b.jpg": b"", "c.webp": b"RIFF"}.items():
        Path("broken", name).write_bytes(content)
    code, out, error = ending(dispatch, ["init", "broken", "--yes"], capsys)
    assert (code, out) == (2, "")
    assert error.startswith(
        "error: broken: 3 of 3 images can't be used, more than 1%; repair or remove them:\n"
    )
    assert [line.split(": ")[0] for line in error.splitlines()[1:]] == [
        f"  broken/{name}" for name in ("a.png", "b.jpg", "c.webp")
    ]
    assert os.listdir() == ["broken"]


def test_answers_that_end_leave_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-D at each question in turn."""
    answers = [str(root / "train"), "", "7"]
    for known in range(len(answers)):
        terminal = io.StringIO("".join(f"{answer}\n" for answer in answers[:known]))
        monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("sys.stdin", terminal)
        code, _, error = ending(dispatch, ["init"], capsys)
        assert (code, error.count("\n")) == (2, 1)
        assert error.startswith(
            "error: no more answers: answer on a terminal, or take every default with --yes"
        )
        assert os.listdir() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["empty"], "empty: no images in it"),
        (["nowhere"], "the folder nowhere: there is no such folder"),
        ([], "name a folder of images"),
        (["full\udcff"], "is not UTF-8, or holds control characters"),
        (["full\n"], "is not UTF-8, or holds control characters"),
        (["full", "--checkpoint", "nowhere"], "nowhere does not exist; give a .safetensors file"),
        (["full", "--gpu", "rtx490"], "the nearest is 'rtx4090'"),
        (["full", "--train", "lroa"], "the nearest is 'lora'"),
        (["full", "--train.stpes", "3"], "--train.stpes"),
        (["full", "--train.steps", "0"], "train.steps 0 must be at least 1"),
        (["full", "--out", "mine.yaml"], "must end in .toml"),
        (["full", "--out", "there.toml"], "there.toml exists; name another file with --out"),
        (["full", "--out", "no/mine.toml"], "there is no folder no"),
        (["full", "--out", "tiny.toml"], "has the name of a preset"),
        (
            ["full", "--out", "/proc/mine.toml"],
            "could not write /proc/mine.toml: No such file or directory; choose",
        ),
        (["full", "--out", f"{'x' * 300}.toml"], "File name too long; choose a shorter name"),
        (["full/000.png"], "a file ending in .png is not a data set (this is a PNG image)"),
        (["full", "--gpu", "1MB"], "nothing trains in 1,026,730 bytes; check the unit, as in 24GB"),
        (["full", "--data.heldout", "nowhere"], "data.heldout nowhere: there is no such folder"),
        (["full", "--import", "a.toml"], "leave out FOLDER"),
        (["--import", "a.toml"], "could not read a.toml"),
        (
            ["--import", "a.toml", "--gpu", "rtx4090"],
            "--gpu rtx4090: --import keeps the other trainer's settings",
        ),
        (["--import", "there.toml"], "neither a TOML file of sd-scripts nor a JSON file of OneTrainer"),
        (["full", "--skip-unknown"], "--skip-unknown is for --import alone"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused_leaves_nothing(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    runs.write_images(Path("full"), 1)
    Path("there.toml").touch()
    before = sorted(os.listdir())
    code, out, error = ending(dispatch, ["init", *words, "--yes"], capsys)
    assert (code, out) == (2, "")
    assert said in " ".join(error.replace("│", "").split())
    assert sorted(os.listdir()) == before


def test_a_card_that_torch_cannot_see(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("refimpl.train.first.card.unseen_gpu", lambda: "/dev/nvidia0")
    code, _, error = ending(dispatch, ["init", str(root / "train"), "--yes"], capsys)
    assert code == 2
    assert error.startswith("error: this machine has a GPU (/dev/nvidia0) that torch can't see: ")
    assert error.count("\n") == 1
    assert os.listdir() == []
