"""A run that was stopped, or killed, and continued is the run that was not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refimpl.commands.train import parse
from refimpl.errors import InputError
from refimpl.interop.run.checkpoints import committed_steps
from refimpl.interop.run.run_folder import load_model
from refimpl.storage import committed
from refimpl.train import loop
from tests.folders import contents, flip_last_bit
from tests.train import runs
from tests.train.processes import run_and_kill, train_until_killed

Run = Callable[..., Path]

STAGES = [
    {"from_step": 0, "buckets": {**runs.BUCKETS, "max_side": 32}, "learning_rate": 3e-3},
    {"from_step": 3, "buckets": runs.BUCKETS, "batch_size": 3, "offset_noise": 0.05},
]
RUNS: dict[str, dict[str, Any]] = {
    "within an epoch": {"optimizer": {"decay": "cosine", "warmup_steps": 3}},
    "over the end of an epoch": {"train": {"batch_size": 3, "accumulate": 3}},
    "by pixel budget": {"train": {"pixel_budget": 3 * 2048}},
}


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is interrupted, as by Ctrl-C, when it has written the checkpoint of that step."""
    write = loop.write_checkpoint

    def interrupted(*arguments: Any) -> None:
        write(*arguments)
        if arguments[2] == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "write_checkpoint", interrupted)


def whole_and_in_parts(run: Run, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Path:
    """Asserts that a run stopped after 2 of its 4 steps and continued is the one never stopped; returns that one."""
    whole = run("whole", **settings)
    stop_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run("parts", **settings)
    monkeypatch.undo()
    parts = run("parts", **{**settings, "train": {**settings.get("train", {}), "resume": True}})
    assert not runs.differing(runs.checkpoint(whole, 4), runs.checkpoint(parts, 4))
    assert runs.rows(whole) == runs.rows(parts)
    return whole


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_stopped_and_resumed_is_the_run_never_stopped(
    kind: str, run: Run, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"heldout": str(root / "heldout"), "horizontal_flip": True}
    whole_and_in_parts(run, monkeypatch, **RUNS[kind], data=data)


def test_resuming_works_across_stages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    train = {"steps": 6}
    whole = run("whole", stages=STAGES, train=train)
    for stop in (2, 4):
        stop_after(stop, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            run("parts", stages=STAGES, train=train | {"resume": stop > 2})
        monkeypatch.undo()
    parts = run("parts", stages=STAGES, train=train | {"resume": True})
    assert not runs.differing(runs.checkpoint(whole, 6), runs.checkpoint(parts, 6))
    assert runs.rows(whole) == runs.rows(parts)
    rates = [row["learning_rate"] for row in runs.rows(whole) if "loss" in row]
    assert rates == [3e-3] * 3 + [1e-2] * 3


def test_more_steps_continue_a_finished_run(run: Run, trained: Path) -> None:
    """With a constant rate 2 steps and then 2 more are 4."""
    run("parts", train={"steps": 2})
    parts = run("parts", train={"resume": True})
    assert not runs.differing(runs.checkpoint(trained, 4), runs.checkpoint(parts, 4))
    assert runs.rows(trained) == runs.rows(parts)
    with pytest.raises(InputError, match=r"is already at step 4; raise train.steps 4"):
        run("parts", train={"resume": True})


@pytest.mark.parametrize(("at", "count"), [("step", 4), ("fsync", 30), ("rename", 3)])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    at: str, count: int, trained: Path, root: Path, tmp_path: Path
) -> None:
    """SIGKILL between checkpoints, and in the middle of writing the second."""
    killed = tmp_path / "killed"
    toml = runs.write_toml(root, tmp_path / "a.toml", killed)
    assert run_and_kill(train_until_killed, [toml], at, count) == -9
    assert committed_steps(killed) == [2]
    load_model(killed)
    (killed / "metrics.jsonl").open("a").write('{"step": 3, "lo')  # the row that was being written
    assert run_and_kill(train_until_killed, [toml, "--train.resume"], "step", 99) == 0
    assert not runs.differing(runs.checkpoint(trained, 4), runs.checkpoint(killed, 4))
    assert runs.rows(trained) == runs.rows(killed)
    left = [path.name for path in (killed / "checkpoints").iterdir()]
    assert sorted(left) == ["step-00000002", "step-00000004"]


@pytest.mark.parametrize(("at", "count"), [("fsync", 2), ("rename", 1)])
def test_a_run_killed_before_its_first_step_can_be_continued(
    at: str, count: int, trained: Path, root: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    toml = runs.write_toml(root, tmp_path / "a.toml", killed)
    assert run_and_kill(train_until_killed, [toml], at, count) == -9
    assert not (killed / "components").exists()
    assert run_and_kill(train_until_killed, [toml, "--train.resume"], "step", 99) == 0
    assert not runs.differing(runs.checkpoint(trained, 4), runs.checkpoint(killed, 4))


def test_changed_settings_are_named_one_by_one(run: Run, trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    before = contents(folder)
    changes = {"seed": 5, "batch_size": 3, "resume": True, "steps": 8, "log_every": 2}
    with pytest.raises(InputError) as error:
        run(train=changes, diffusion={"offset_noise": 0.1})
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert lines == [
        "diffusion.offset_noise: the run has 0.0, now 0.1",
        "train.batch_size: the run has 4, now 3",
        "train.seed: the run has 0, now 5",
    ]
    assert contents(folder) == before


def test_nothing_to_resume_is_said(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a run folder; name one with --train.out"):
        run("absent", train={"resume": True})
    with pytest.raises(
        InputError, match=r"^--resume: '.*absent' does not exist, .*; name one, as in --resume RUN$"
    ):
        parse(["--resume", str(tmp_path / "absent")])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.json cannot be read as a run's settings"):
        run("broken", train={"resume": True})


def test_components_that_are_gone_stop_the_run(run: Run) -> None:
    """Made anew they would be another autoencoder and other towers than the weights were trained with."""
    folder = run(train={"steps": 2})
    shutil.rmtree(folder / "components")
    before = contents(folder)
    with pytest.raises(InputError, match=r"run/components is gone: the autoencoder, its scale-and-shift"):
        run(train={"resume": True})
    assert contents(folder) == before


def test_a_folder_in_the_rows_place_is_named(run: Run) -> None:
    folder = run(train={"steps": 2})
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    with pytest.raises(
        InputError, match=r"metrics\.jsonl cannot be read: Is a directory; move whatever is in its"
    ):
        run(train={"resume": True})


def test_a_run_of_an_earlier_version_has_the_defaults_of_what_was_added_since(
    run: Run, trained: Path
) -> None:
    folder = run(train={"steps": 2})
    table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del table["lora"], table["image_prompt"], table["text"]["vector"]
    del table["train"]["micro_batches"], table["data"]["digest"]
    (folder / "config.json").write_text(json.dumps(table), encoding="utf-8")
    place = folder / "checkpoints" / "step-00000002"
    tensors, documents = committed.read(place)
    shutil.rmtree(place)
    committed.write(place, tensors, documents | {"state": {"step": 2, "ranks": 1, "accumulate": 1}})
    (data,) = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    del data["bytes"], data["times"]
    (folder / "data.json").write_text(json.dumps([data]), encoding="utf-8")
    run(train={"resume": True, "accumulate": 3})
    assert committed_steps(folder) == [2, 4]
    assert not runs.differing(runs.checkpoint(trained, 4), runs.checkpoint(folder, 4))


def test_weights_stored_as_integers_are_refused(run: Run) -> None:
    folder = run(train={"steps": 2})
    place = folder / "checkpoints" / "step-00000002"
    tensors, documents = committed.read(place)
    tensors["unet"]["out.2.bias"] = tensors["unet"]["out.2.bias"].long()
    shutil.rmtree(place)
    committed.write(place, tensors, documents)
    with pytest.raises(InputError, match=r"integers  out\.2\.bias: the file has torch\.int64"):
        run(train={"resume": True})


@pytest.mark.parametrize(("found", "what"), [("config.json", "another run"), ("notes.txt", "other files")])
def test_a_folder_in_use_is_refused_and_left_alone(found: str, what: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / found).write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=f"holds {what}; choose an empty folder"):
        run("run")
    assert contents(tmp_path / "run") == {found: b"{}"}


def test_a_file_in_the_folders_place_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="holds other files"):
        run("file")
    with pytest.raises(InputError, match="cannot be made or read: Not a directory; choose another"):
        run("file/run")


@pytest.mark.parametrize("damage", ["bit", "no manifest", "at its last step"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(
    damage: str, run: Run, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    newest = folder / "checkpoints" / "step-00000004"
    if damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        flip_last_bit(newest / "unet.safetensors")
    before = contents(newest)
    run(train={"resume": True, "steps": 4 if damage == "at its last step" else 6})
    said = capsys.readouterr().out
    what = "it has no manifest.json" if damage == "no manifest" else "step-00000004/unet.safetensors differs"
    assert what in said
    assert f"set aside as {newest}.damaged-1; going on from the checkpoint before" in said
    assert contents(folder / "checkpoints" / "step-00000004.damaged-1") == before
    assert not runs.differing(runs.checkpoint(trained, 4), runs.checkpoint(folder, 4))
    assert committed_steps(folder) == [2, 4] if damage == "at its last step" else [2, 4, 6]


def test_a_run_whose_checkpoints_are_all_damaged_is_stopped(run: Run) -> None:
    folder = run(train={"steps": 2})
    flip_last_bit(folder / "checkpoints" / "step-00000002" / "optimizer.safetensors")
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"no checkpoint of .*run is whole: .*step-00000002\.damaged-1; put a"
        ):
            run(train={"resume": True})


def test_a_checkpoint_of_a_newer_version_stops_the_run_and_stays(run: Run) -> None:
    folder = run(train={"steps": 2})
    path = folder / "checkpoints" / "step-00000002" / "manifest.json"
    path.write_text(json.dumps({"format": 2, "files": {}}), encoding="utf-8")
    with pytest.raises(InputError, match="has format 2; this version reads format 1"):
        run(train={"resume": True})
    assert path.is_file()


def test_init_from_is_not_needed_again(run: Run) -> None:
    first = run("first", train={"steps": 1})
    second = run("second", train={"steps": 1, "init_from": str(first)})
    shutil.rmtree(first)
    run("second", train={"steps": 2, "init_from": str(first), "resume": True})
    assert committed_steps(second) == [1, 2]


def test_only_the_newest_checkpoints_are_kept(run: Run) -> None:
    kept = {keep: committed_steps(run(f"{keep}", train={"checkpoint_every": 1, "keep_checkpoints": keep}))
            for keep in (0, 3)}  # fmt: skip
    assert kept == {0: [1, 2, 3, 4], 3: [2, 3, 4]}


def test_checkpoints_of_every_nth_step_are_kept(run: Run) -> None:
    train = {"checkpoint_every": 1, "keep_checkpoints": 1, "keep_every": 2, "steps": 5}
    assert committed_steps(run(train=train)) == [2, 4, 5]


def test_checkpoints_written_in_the_background_are_the_same(run: Run, trained: Path) -> None:
    folder = run(train={"save_async": True})
    assert committed_steps(folder) == [2, 4]
    for step in (2, 4):
        assert not runs.differing(runs.checkpoint(trained, step), runs.checkpoint(folder, step))


def test_what_failed_in_the_background_is_raised_by_the_next_save_or_at_the_end(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = committed.write

    def failing(folder: Path, *arguments: Any) -> None:
        if folder.name.endswith(bad):
            raise InputError("no room")
        original(folder, *arguments)

    monkeypatch.setattr(committed, "write", failing)
    for bad, kept in (("2", []), ("4", [2])):
        with pytest.raises(InputError, match="no room"):
            run(bad, train={"save_async": True})
        assert committed_steps(tmp_path / bad) == kept


def test_state_is_all_in_safetensors_and_json(run: Run) -> None:
    """No generator state, nothing pickled."""
    folder = run(train={"steps": 2}) / "checkpoints" / "step-00000002"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "ema.safetensors", "manifest.json", "optimizer.safetensors", "state.json", "unet.safetensors",
    ]  # fmt: skip
    assert json.loads((folder / "state.json").read_text()) == {"step": 2, "ranks": 1, "micro_batches": 1}
