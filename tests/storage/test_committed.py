"""Committed folders: whole or absent, whatever fails or dies while they are written."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from refimpl.errors import InputError
from refimpl.storage import atomic, committed
from refimpl.storage.key_report import check_state
from refimpl.storage.streaming import load_state
from tests.folders import flip_last_bit, largest_file
from tests.killing import kill_at

TENSORS = {
    "a": {"x": torch.arange(6.0).view(2, 3), "empty": torch.zeros(0, 3), "scalar": torch.tensor(1.5)},
    "b": {
        "half": torch.ones(3, dtype=torch.bfloat16),
        "integers": torch.tensor([-(2**62), 2**62]),
        "transposed": torch.arange(6.0).view(2, 3).T,
    },
}
DOCUMENTS = {"notes": {"step": 3, "text": "é \u2028", "list": [1, None, True, 1e-300]}}


def write(folder: Path) -> Path:
    committed.write(folder, TENSORS, DOCUMENTS)
    return folder


def test_what_was_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    tensors, documents = committed.read(write(tmp_path / "deep" / "er" / "folder"))
    assert documents == DOCUMENTS
    assert {name: sorted(state) for name, state in tensors.items()} == {
        name: sorted(state) for name, state in TENSORS.items()
    }
    for name, state in TENSORS.items():
        for key, value in state.items():
            assert torch.equal(tensors[name][key], value)
            assert tensors[name][key].dtype == value.dtype
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["folder"]


def test_a_part_can_be_read_alone(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder")
    (folder / "b.safetensors").write_bytes(b"damaged")
    tensors, documents = committed.read(folder, {"a"})
    assert sorted(tensors) == ["a"]
    assert not documents
    with pytest.raises(
        InputError, match=r"has no c, d; it holds a\.safetensors, b\.safetensors, notes\.json"
    ):
        committed.read(folder, {"a", "c", "d"})


def test_a_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder")
    before = contents(folder)
    with pytest.raises(InputError, match="already exists; a checkpoint is never overwritten"):
        committed.write(folder, {}, {"notes": 1})
    assert contents(folder) == before


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "changed byte": (
        lambda f: flip_last_bit(f / "a.safetensors"),
        r"a\.safetensors differs from its manifest",
    ),
    "cut file": (lambda f: os.truncate(f / "b.safetensors", 20), r"b\.safetensors differs from its manifest"),
    "changed document": (
        lambda f: flip_last_bit(f / "notes.json"),
        r"notes\.json differs from its manifest",
    ),
    "missing file": (
        lambda f: (f / "a.safetensors").unlink(),
        r"lacks a\.safetensors, which its manifest lists",
    ),
    "no manifest": (
        lambda f: (f / "manifest.json").unlink(),
        r"is not a checkpoint: it has no manifest\.json",
    ),
    "empty manifest": (lambda f: (f / "manifest.json").write_text(""), "is not a checkpoint manifest"),
    "other JSON": (lambda f: (f / "manifest.json").write_text("[1]"), "is not a checkpoint manifest"),
    "binary": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), "is not a checkpoint manifest"),
    "list of files": (lambda f: manifest(f, files=[]), r"is not a checkpoint manifest: its files are \[\]"),
    "newer format": (lambda f: manifest(f, format=2), "has format 2; this version reads format 1"),
    "future format": (lambda f: manifest(f, format="x"), "has format 'x'; this version reads format 1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_by_file(damage: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "folder")
    do, message = DAMAGES[damage]
    do(folder)
    after = contents(folder)
    for check in (committed.read, committed.verify):
        with pytest.raises(InputError, match=message) as error:
            check(folder)
        assert str(folder) in str(error.value)
    assert contents(folder) == after  # reading repairs nothing


@pytest.mark.parametrize("path", ["nothing", "file"])
def test_what_is_no_checkpoint_is_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is not a checkpoint: it has no manifest"):
        committed.read(tmp_path / path)


def test_a_file_that_never_was_safetensors_is_named(tmp_path: Path) -> None:
    with committed.committed_folder(tmp_path / "folder") as temporary:
        (temporary / "a.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"a\.safetensors is a text file, not a safetensors file"):
        committed.read(tmp_path / "folder")


# --- failures while writing ---

STAGES = [("fsync", n) for n in range(1, 6)] + [("rename", 1), ("mkdir", 2)]


@pytest.mark.parametrize(("call", "count"), STAGES)
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing(
    call: str, count: int, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = write(tmp_path / "old")
    before = contents(old)
    original, calls = getattr(os, call), []

    def failing(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == count:
            raise failure
        return original(*arguments, **options)

    monkeypatch.setattr(os, call, failing)
    expected = InputError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as error:
        write(tmp_path / "new")
    monkeypatch.undo()
    if expected is InputError:
        assert "could not write" in str(error.value)
        assert "No space left on device; free space or choose another folder" in str(error.value)
    assert contents(old) == before
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_failure_after_the_rename_leaves_a_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last fsync, of the parent folder, comes when everything is there."""
    original, calls = os.fsync, []

    def failing(descriptor: int) -> None:
        calls.append(1)
        if len(calls) == 6:
            raise OSError(5, "Input/output error")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(InputError, match="Input/output error"):
        write(tmp_path / "folder")
    committed.verify(tmp_path / "folder")


@pytest.mark.parametrize("room", [0, 1])
@pytest.mark.parametrize("file", ["a.safetensors", "b.safetensors", "notes.json", "manifest.json"])
def test_a_full_disk_is_an_input_error(file: str, room: int, tmp_path: Path) -> None:
    """The system refuses to let a file grow past the limit, as a full disk would, also inside safetensors."""
    committed.write(tmp_path / "old", *only(file))
    old = tmp_path / "old"
    before = contents(old)
    limit = room * ((old / file).stat().st_size - 1)
    with largest_file(limit), pytest.raises(InputError, match=r"could not write .*new.*; free space"):
        committed.write(tmp_path / "new", *only(file))
    assert contents(old) == before
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(("call", "count"), [*STAGES, ("fsync", 6), ("replace", 1)])
def test_a_process_killed_at_any_moment_leaves_a_whole_folder_or_none(
    call: str, count: int, tmp_path: Path
) -> None:
    """SIGKILL: no finally, no buffers written."""
    child = os.fork()
    if child == 0:
        try:
            kill_at(os, call, count)
            write(tmp_path / "folder")
            atomic.replace_text(tmp_path / "text.json", "new")
        finally:
            os._exit(0)  # never back into the test runner
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert not (tmp_path / "text.json").exists()
    if (tmp_path / "folder").exists():
        assert (call, count) in (("fsync", 6), ("replace", 1))
        assert committed.read(tmp_path / "folder").documents == DOCUMENTS
    else:
        write(tmp_path / "folder")  # what the killed process left is in nobody's way
    committed.verify(tmp_path / "folder")


def test_folders_within_are_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, original = [], atomic.fsync
    for module in (atomic, committed):
        monkeypatch.setattr(module, "fsync", lambda path: (synced.append(path), original(path)))
    with committed.committed_folder(tmp_path / "folder") as temporary:
        (temporary / "towers").mkdir()
        (temporary / "towers" / "a.txt").write_text("x")
    names = [path.name for path in synced]
    assert names[:3] == ["towers", "a.txt", "manifest.json"]
    assert names[3:] == [temporary.name, tmp_path.name]
    assert json.loads((tmp_path / "folder" / "manifest.json").read_text())["files"].keys() == {"towers/a.txt"}


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "text.json"
    atomic.replace_text(path, "old")
    with largest_file(1), pytest.raises(InputError, match=r"could not write .*text\.json: File too large"):
        atomic.replace_text(path, "new and longer")
    assert path.read_text() == "old"
    atomic.replace_text(path, "é")
    assert path.read_text(encoding="utf-8") == "é"
    assert [p.name for p in tmp_path.iterdir()] == ["text.json"]
    with pytest.raises(InputError, match="No such file or directory"):
        atomic.replace_text(tmp_path / "absent" / "text.json", "")


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0, 0o666, 0o777)]
)
def test_permissions_are_what_the_umask_leaves(umask: int, file: int, folder: int, tmp_path: Path) -> None:
    """Also of what a library writes, as transformers has safetensors write towers: readable by their owner alone."""
    before = os.umask(umask)
    try:
        write(tmp_path / "plain")
        with committed.committed_folder(tmp_path / "towers") as temporary:
            (temporary / "text").mkdir(0o700)
            save_file({"x": torch.zeros(1)}, temporary / "text" / "model.safetensors")
            (temporary / "text" / "model.safetensors").chmod(0o600)
        with atomic.replaced_file(tmp_path / "file") as temporary:
            save_file({"x": torch.zeros(1)}, temporary)
            temporary.chmod(0o600)
        atomic.replace_text(tmp_path / "text.json", "x")
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert len(modes) == 11
    assert modes == {path: folder if path.is_dir() else file for path in modes}


# --- tensors against a module ---


def test_all_differences_are_listed_at_once() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = {
        "0.weight": torch.zeros(3, 3),
        "0.bias": torch.zeros(3),
        "2.bias": torch.zeros(4),
        "x": torch.tensor(1),
    }
    with pytest.raises(InputError) as error:
        load_state(module, state, "run/unet.safetensors")
    message = str(error.value)
    assert message.startswith("run/unet.safetensors does not fit this model; 5 of its tensors differ:")
    for line in (
        "missing   1.weight [1, 3]",
        "missing   1.bias [1]",
        "unknown   2.bias [4] (the nearest is 1.bias)",
        "unknown   x [] (the nearest is 1.weight)",
        "misshapen 0.weight: the file has [3, 3], the network needs [3, 2]",
    ):
        assert f"\n  {line}\n" in message
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_fitting_state_is_loaded() -> None:
    module = torch.nn.Linear(2, 3)
    state = {"weight": torch.arange(6.0).view(3, 2), "bias": torch.tensor([-0.0, 1e-40, 3e38])}
    load_state(module, state, "x")
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    check_state({}, {}, "x")


# --- helpers ---


def only(file: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors and documents of that file alone; of all for the manifest, the largest then."""
    tensors = {name: state for name, state in TENSORS.items() if file == f"{name}.safetensors"}
    documents = DOCUMENTS if file == "notes.json" else {}
    return ({}, {str(n): {} for n in range(9)}) if file == "manifest.json" else (tensors, documents)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def manifest(folder: Path, **changes: Any) -> None:
    """Changes the manifest, and leaves out its digest of itself as earlier versions did."""
    path = folder / "manifest.json"
    before = {key: value for key, value in json.loads(path.read_text()).items() if key in ("format", "files")}
    path.write_text(json.dumps(before | changes))


@pytest.mark.parametrize("is_dangling", [False, True])
def test_a_link_is_replaced_and_what_it_points_to_stays(is_dangling: bool, tmp_path: Path) -> None:
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    target.parent.mkdir()
    if not is_dangling:
        target.write_text("kept")
    link.symlink_to(target)
    atomic.replace_text(link, "new")
    assert not link.is_symlink()
    assert link.read_text() == "new"
    assert [path.read_text() for path in target.parent.iterdir()] == ([] if is_dangling else ["kept"])
