"""Hostile inputs of the commands that write: one message, nothing half-written, and what was there stays."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from refimpl.commands.files.convert import convert_command
from refimpl.commands.files.export import export_command
from refimpl.commands.main import dispatch
from refimpl.commands.terminal import run_command
from refimpl.interop import diffusers_folder, single_file
from refimpl.storage import safetensors_file
from refimpl.storage.manifest import fingerprint, manifest_text
from refimpl.text.tokenizer import tiny_tokenizer
from tests.folders import largest_file
from tests.hostile.corpus import CANARY, DEEP, ESCAPES, PICKLE, container, torch_archive
from tests.hostile.crafted import entry, header
from tests.interop.checkpoints import working
from tests.train.processes import run_and_kill

BOMB_MIB = 64  # unpacked
BIAS = "model.diffusion_model.out.2.bias"
Change = Callable[[dict[str, Tensor]], object]


def written(content: bytes) -> Callable[[Path], object]:
    """Writes these bytes."""
    return lambda path: path.write_bytes(content)


def changed(change: Change) -> Callable[[Path], object]:
    """Changes the tensors of a whole model."""

    def write(path: Path) -> None:
        tensors, metadata = safetensors_file.read(path)
        tensors = {name: value.clone() for name, value in tensors.items()}
        change(tensors)
        safetensors_file.write(path, tensors, metadata)

    return write


def edited(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Changes the header of a whole model; the tensors' bytes stay."""

    def write(path: Path) -> None:
        content = path.read_bytes()
        (length,) = struct.unpack_from("<Q", content)
        path.write_bytes(container(change(content[8 : 8 + length]), content[8 + length :]))

    return write


def bomb() -> bytes:
    """A zip of zeros."""
    content, zeros = io.BytesIO(), bytes(2**20)
    with (
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("archive/data/0", "w", force_zip64=True) as file,
    ):
        for _ in range(BOMB_MIB):
            file.write(zeros)
    return content.getvalue()


def repeated(head: bytes) -> bytes:
    """A header whose first key is there twice."""
    table = json.loads(head)
    name = next(key for key in table if key != "__metadata__")
    return head.rstrip()[:-1] + b"," + json.dumps({name: table[name]}).encode()[1:]


def filled(value: float) -> Change:
    """Puts a value into one weight."""
    return lambda tensors: tensors[BIAS].__setitem__(0, value)


INPUTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "overlapping tensors": (
        written(container(header(x=entry([2], [0, 8]), y=entry([2], [4, 12])), bytes(12))), "y|overlap"),
    "a negative offset": (written(container(header(x=entry([1], [-4, 0])))), "x"),
    "a huge offset": (written(container(header(x=entry([2**40], [0, 2**42])))), "truncated|x"),
    "an offset beyond 64 bits": (written(container(header(x=entry([2**62], [0, 2**70])))), "x"),
    "a huge header": (written(struct.pack("<Q", 2**63) + b"{}"), "header"),
    "an empty file": (written(b""), "in.safetensors"),
    "a key twice": (edited(repeated), "twice|more than once|repeated"),
    "whole numbers for weights": (
        changed(lambda t: t.update({BIAS: torch.zeros(4, dtype=torch.int64)})), "out.2.bias"),
    "truth values for weights": (
        changed(lambda t: t.update({BIAS: torch.zeros(4, dtype=torch.bool)})), "out.2.bias"),
    "a dtype of another length": (edited(lambda head: head.replace(b'"F32"', b'"F64"')), "in.safetensors"),
    "weights that are no numbers": (changed(filled(torch.nan)), "unet tensor out.2.bias .* not finite"),
    "weights without end": (changed(filled(torch.inf)), "unet tensor out.2.bias .* not finite"),
    "weights beyond float16": (
        changed(filled(1e30)), "/out(/unet: tensor conv_out|.safetensors: tensor .*out.2).bias.*65504"),
    "a UNet that lacks a tensor": (changed(lambda t: t.pop(BIAS)), "out.2.bias"),
    "a tower that lacks a tensor": (
        changed(lambda t: t.pop("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight")),
        "final_layer_norm.weight"),
    "a tensor of no part": (changed(lambda t: t.update({"nobody's": torch.zeros(1)})), "nobody's"),
    "no part at all": (written(container(header(x=entry([1], [0, 4])), bytes(4))), "x"),
    "a pickle": (written(PICKLE), "pickle"),
    "an archive of torch.save": (written(torch_archive()), "zip|pickle|torch"),
    "a zip that unpacks to hundreds of times its size": (lambda path: path.write_bytes(bomb()), "zip|pickle|torch"),
    "names that are not UTF-8": (written(container(b'{"\xff\xfe":0}')), "not"),
    "names with escapes": (
        changed(lambda t: t.update({ESCAPES.replace("\0", ""): torch.zeros(1)})), r"\\x1b"),
    "a name with half a pair": (
        written(container(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4))),
        "ud800|surrogate"),
    "a header that nests": (written(container(DEEP.encode())), "nested|deep|not"),
}  # fmt: skip


def tree(folder: Path) -> dict[str, str]:
    """Every name below a folder, with the digest of what it holds or where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        elif path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path)] = ""
    return found


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., str]:
    """refused(*words): runs a command that must end with 2, one message and the disk as it was; the message."""

    def run(*words: object, code: int = 2) -> str:
        monkeypatch.chdir(tmp_path)
        before = tree(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command(lambda: dispatch([str(word) for word in words]))
        out, error = capsys.readouterr()
        assert ended.value.code == code, out + error
        assert error.startswith("error: "), error
        assert "Traceback" not in error
        assert all(letter.isprintable() or letter == "\n" for letter in error), ascii(error)
        assert tree(tmp_path) == before
        assert not (tmp_path / CANARY).exists()
        return error

    return run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model in a file, and one in a folder; no test changes them."""
    folder = tmp_path_factory.mktemp("models")
    single_file.save(working(), folder / "in.safetensors")
    diffusers_folder.save(working(), folder / "model", tokenizer=tiny_tokenizer())
    return folder


@pytest.fixture
def here(models: Path, tmp_path: Path) -> Path:
    """Copies of them in the current folder."""
    return shutil.copytree(models, tmp_path, dirs_exist_ok=True)


@pytest.mark.parametrize("name", INPUTS)
def test_convert_refuses(name: str, models: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    build, says = INPUTS[name]
    shutil.copy(models / "in.safetensors", tmp_path)
    build(tmp_path / "in.safetensors")
    for out in ("out.safetensors", "out"):
        error = refused("convert", "in.safetensors", tmp_path / out, "--dtype", "fp16")
        assert re.search(says, error), error


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["in.safetensors", "in.safetensors"], "both what is read"),
        (["in.safetensors", "./model/../in.safetensors"], "both what is read"),
        (["in.safetensors", "hard.safetensors"], "both what is read"),
        (["in.safetensors", "loop.safetensors"], "exists already"),
        (["in.safetensors", "model"], "exists already"),
        (["model", "model"], "both what is read"),
        (["model", "model/unet"], "exists already"),
        (["model", "model/new"], "model/new lies in .*model, which is only read"),
        (["model", "model/unet/new.safetensors"], "lies in .*model, which is only read"),
        (["model", "alias/new"], "lies in .*model, which is only read"),
        (["in.safetensors", "in.safetensors/new"], "is not a folder"),
        (["in.safetensors", "/proc/new.safetensors"], "could not write /proc/new.safetensors"),
        (["in.safetensors", "/proc/new"], "could not write /proc/new"),
        (["in.safetensors", "n" * 300 + ".safetensors"], "too long"),
        (["in.safetensors", "n" * 300], "too long"),
        (["n" * 300, "out"], "too long"),
        (["in.safetensors", ESCAPES.replace("\0", "") + "/x"], r"\\x1b.* is not a folder"),
    ],
)
def test_convert_writes_only_where_it_may(
    words: list[str], says: str, here: Path, refused: Callable[..., str]
) -> None:
    (here / "hard.safetensors").hardlink_to(here / "in.safetensors")
    (here / "loop.safetensors").symlink_to("loop.safetensors")
    (here / "alias").symlink_to("model")
    assert re.search(says, refused("convert", *words))


@pytest.mark.parametrize("most", [0, 300_000])
@pytest.mark.parametrize("out", ["out.safetensors", "out"])
@pytest.mark.usefixtures("here")
def test_a_full_disk_leaves_nothing(out: str, most: int, trained: Path, refused: Callable[..., str]) -> None:
    for words in (("convert", "in.safetensors"), ("convert", "model"), ("export", trained)):
        with largest_file(most):
            error = refused(*words, out)
        assert re.search(rf"could not write .*/?{out}.*: File too large; free space", error), error


def test_killed_midway_leaves_no_output_and_the_next_attempt_succeeds(here: Path) -> None:
    before = tree(here)
    assert run_and_kill(convert_until_killed, str(here / "in.safetensors"), str(here / "out")) == -9
    left = {name: what for name, what in tree(here).items() if ".writing-" not in name}
    assert left == before
    convert_command([str(here / "in.safetensors"), str(here / "out")])
    assert (here / "out").is_dir()


def convert_until_killed(source: str, out: str) -> None:
    """Converts, and kills itself with SIGKILL where it would be renamed."""

    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    os.replace = os.rename = kill
    convert_command([source, out])


RUNS: dict[str, tuple[Callable[[Path], object], str]] = {
    "settings that nest": (lambda step: recorded(step, "config.json", DEEP), "nested|deep|JSON"),
    "settings that are a list": (lambda step: recorded(step, "config.json", "[]"), "config"),
    "settings that are missing": (lambda step: (step / "config.json").unlink(), "is not a run folder"),
    "a manifest that climbs out": (lambda step: listed(step, "../../../../etc/passwd"), "outside of"),
    "a manifest of a newer version": (
        lambda step: (step / "manifest.json").write_text('{"format": 99, "files": {}}'),
        "has format 99; this version reads format 1",
    ),
    "a manifest that is a number": (lambda step: (step / "manifest.json").write_text("7"), "manifest"),
    "a manifest that nests": (lambda step: (step / "manifest.json").write_text(DEEP), "manifest"),
    "no manifest": (lambda step: (step / "manifest.json").unlink(), "is not a run folder"),
    "a network cut short": (
        lambda step: os.truncate(step / "ema.safetensors", 100), "ema.safetensors differs from its manifest"),
    "a network that is a pickle": (
        lambda step: recorded(step, "ema.safetensors", PICKLE), "pickle"),
    "a network of another shape": (
        lambda step: recorded(step, "ema.safetensors", container(header(x=entry([1], [0, 4])), bytes(4))),
        "does not fit|missing|x"),
    "a network of numbers that are none": (lambda step: spoilt(step, torch.nan), "not finite"),
    "a step that is a file": (lambda step: (shutil.rmtree(step), step.write_text("")), "step-"),
    "a step that is gone": (lambda step: shutil.rmtree(step), "does not exist"),
}  # fmt: skip


def recorded(step: Path, name: str, content: str | bytes) -> None:
    """Replaces a file of a checkpoint, and its entry in the manifest: someone has made it so."""
    (step / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    files = json.loads((step / "manifest.json").read_text())["files"]
    (step / "manifest.json").write_text(manifest_text({**files, name: fingerprint(step / name)}))


def spoilt(step: Path, value: float) -> None:
    """Puts a value into one weight of the moving average."""
    tensors, metadata = safetensors_file.read(step / "ema.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    next(iter(tensors.values())).view(-1)[0] = value
    safetensors_file.write(step / "new", tensors, metadata)
    content = (step / "new").read_bytes()
    (step / "new").unlink()
    recorded(step, "ema.safetensors", content)


def listed(step: Path, name: str) -> None:
    """Lists another file in the manifest."""
    files = json.loads((step / "manifest.json").read_text())["files"]
    (step / "manifest.json").write_text(manifest_text({**files, name: {"sha256": "0" * 64, "size": 1}}))


@pytest.mark.parametrize("name", RUNS)
def test_export_refuses(name: str, tmp_path: Path, trained: Path, refused: Callable[..., str]) -> None:
    change, says = RUNS[name]
    shutil.copytree(trained, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "step-00000004"
    change(step)
    for out in ("out.safetensors", "out"):
        assert re.search(says, refused("export", step, out))


def test_export_leaves_the_run_as_it_was(tmp_path: Path, trained: Path, refused: Callable[..., str]) -> None:
    shutil.copytree(trained, tmp_path / "run")
    for out in ("run/checkpoints/step-00000009", "run/checkpoints/x.safetensors"):
        assert "which is only read" in refused("export", "run", out)


def test_an_export_may_lie_beside_the_checkpoints(tmp_path: Path, trained: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    export_command([str(tmp_path / "run"), str(tmp_path / "run" / "model.safetensors")])
    assert (tmp_path / "run" / "model.safetensors").is_file()
