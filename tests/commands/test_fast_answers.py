"""Help and bad input are answered before anything heavy is imported."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from refimpl.commands.main import COMMANDS

HEAVY = (
    "torch", "transformers", "tokenizers", "safetensors", "numpy", "PIL", "tqdm", "matplotlib", "pyarrow", "skimage",
    "sklearn", "simplejpeg",
)  # fmt: skip
CPU_SECONDS = 1.0  # of one answer, which takes about half of it
PROBE = f"""
import atexit, os, sys
loaded = lambda: os.write(2, ("loaded: " + " ".join(set({HEAVY}) & set(sys.modules))).encode())
atexit.register(loaded)
from refimpl.commands.main import main
main()
"""
MODULE = PROBE.replace("refimpl.commands.main", "refimpl.commands.{}")

NEEDED = {  # what a command needs before its options are looked at
    "data": ["check", "nowhere"], "stats": ["tiny"], "cache": ["tiny", "--out", "x"], "train": ["tiny"],
    "estimate": ["tiny"], "init": ["nowhere"],
    "train-decoder": ["a", "--folder", "b", "--out", "c"], "sample": ["run"], "inspect": ["a"],
    "convert": ["a", "b"], "export": ["a", "b"], "merge-lora": ["a", "b", "c"], "export-lora": ["a", "b"],
    "push": ["a", "b"], "report": ["run"],
}  # fmt: skip

BAD_FILE = "[train]\nstpes = 3\n"
WORSE_FILE = "[train]\nstpes = 3\nseeed = 1\nsteps = 'x'\n[data]\nfoldre = 'x'\n[unett]\n"
KOHYAS = "network_dim = 4\ntrain_data_dir = 'x'\n"
WRONG_PATHS = """
[data]
folder = "no/images"
heldout = "no/heldout"
[latents]
weights = "no/vae.safetensors"
[text]
folder = "no/sdxl"
[train]
init_from = "no/model.safetensors"
"""


def answer(words: list[str], folder: Path, code: str = PROBE) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; fails when one of HEAVY was imported."""
    call = [sys.executable, "-c", code, *words]
    done = subprocess.run(call, capture_output=True, text=True, cwd=folder, check=False, timeout=300)
    said, marker, loaded = done.stderr.rpartition("loaded:")
    assert marker, done.stderr
    assert loaded.split() == []
    assert "Traceback" not in said
    return done.returncode, done.stdout, said


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["data", "--help"],
        ["data", "index", "--help"],
        ["data", "check", "--help"],
        ["data", "tags", "--help"],
        ["train", "tiny", "--help"],
        ["train", "sdxl_base", "--help-all"],
        ["train", "--help-all"],
        *([name, "--help"] for name in COMMANDS if name != "data"),
    ],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    code, out, error = answer(words, tmp_path)
    assert (code, error) == (0, "")
    assert len(out.split()) > 20


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistyped_option_is_answered_at_once(name: str, tmp_path: Path) -> None:
    code, _, error = answer([name, *NEEDED.get(name, []), "--sede", "3"], tmp_path)
    assert code == 2
    assert "--sede" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "'trian' is no command; the nearest is 'train'"),
        (["data", "chekc", "x"], "'chekc' is no command of refimpl data; the nearest is 'check'"),
        (["data", "check", "tinny"], "the nearest is 'tiny'"),
        (["train"], "name a preset or a TOML file first"),
        (["train", "tinny"], "the nearest preset is 'tiny'"),
        (["stats", "tinny"], "the nearest preset is 'tiny'"),
        (["cache", "tinny", "--out", "x"], "the nearest preset is 'tiny'"),
        (["estimate", "tinny"], "the nearest preset is 'tiny'"),
        (["estimate", "tiny", "--gpu", "rtx490"], "the nearest is 'rtx4090'"),
        (["train", "bad.toml"], "unknown key train.stpes; did you mean train.steps?"),
        (
            ["train", "kohyas.toml"],
            "is a configuration of sd-scripts, not of refimpl; translate it with `refimpl init",
        ),
        (["estimate", "kohyas.toml"], "`refimpl init --import kohyas.toml`"),
        (["init", "nowhere", "--yes"], "the folder nowhere: there is no such folder"),
        (["init", "--import", "bad.toml"], "neither a TOML file of sd-scripts nor a JSON file of OneTrainer"),
        (["init", "--import", "kohyas.toml", "--out", "bad.toml"], "bad.toml exists"),
        (["init", ".", "--train.stepz", "3"], "--train.steps"),
        (["data", "bad.toml"], "unknown key train.stpes; did you mean train.steps?"),
        (["train", "tiny", "--train.stepz", "3"], "--train.steps"),
        (["train", "tiny", "--train.steps", "0"], "train.steps 0 must be at least 1"),
        (["train", "tiny", "--diffusion.parameterisation", "eps"], "zero-terminal-SNR"),
        (["train", "tiny", "--lora.rank", "4", "--lora.alpha", "nan"], "lora.alpha nan"),
        (["train", "tiny", "--sample.sampler", "eular"], "the nearest is 'euler'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_answered_at_once(words: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(BAD_FILE)
    (tmp_path / "kohyas.toml").write_text(KOHYAS)
    code, out, error = answer(words, tmp_path)
    assert (code, out) == (2, "")
    assert message in " ".join(error.replace("│", "").split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "tiny", "--train.steps", "x"], "--train.steps must be a whole number, not 'x'"),
        (["train", "tiny", "--train.steps", "1.5"], "--train.steps must be a whole number, not '1.5'"),
        (["train", "tiny", "--train.steps=a: b"], "--train.steps must be a whole number, not 'a: b'"),
        (["train", "tiny", "--train.steps="], "--train.steps must be a whole number, not ''"),
        (["estimate", "tiny", "--optimizer.learning-rate", "1e"],
         "--optimizer.learning-rate must be a number, not '1e'"),
        (["sample", "run", "--steps", "3.5"], "--steps must be a whole number, not '3.5'"),
        (["data", "check", "run", "--batch-size", "x"], "--batch-size must be a whole number, not 'x'"),
        (["train", "tiny", "--train.steps", "9" * 5000], "--train.steps must be a whole number, of fewer digits"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_no_number_is_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    assert answer(words, tmp_path) == (2, "", f"error: {message}\n")


def test_all_wrong_keys_are_listed_at_once(tmp_path: Path) -> None:
    (tmp_path / "worse.toml").write_text(WORSE_FILE)
    code, _, error = answer(["train", "worse.toml"], tmp_path)
    assert code == 2
    assert [line.partition(" (a ")[0].partition("; name")[0] for line in error.splitlines()] == [
        "error: worse.toml: 7 settings are wrong",
        "  unknown key unett; did you mean unet?",
        "  unknown key data.foldre; did you mean data.folder?",
        "  unknown key train.stpes; did you mean train.steps?",
        "  unknown key train.seeed; did you mean train.seed?",
        "  train.steps must be int, not 'x'",
        "  no autoencoder: give latents.weights",
        "  text.folder is empty",
    ]


def test_keys_ranges_sections_and_paths_are_one_list(tmp_path: Path) -> None:
    """The command line's values count: what it puts right is not said."""
    (tmp_path / "all.toml").write_text(WRONG_PATHS + "stpes = 3\nbatch_size = 0\n[sample]\nwidth = 13\n")
    named = ("unknown key train.stpes", "train.batch_size 0", "sample.width 13", "data.folder no/images",
             "data.heldout no/heldout", "train.init_from no/model.safetensors", "latents.weights no/vae.safetensors",
             "text.folder no/sdxl")  # fmt: skip
    code, out, error = answer(["train", "all.toml"], tmp_path)
    assert (code, out) == (2, "")
    first, *rest = error.splitlines()
    assert first == "error: all.toml: 8 settings are wrong"
    assert all(line.startswith(f"  {name}") for line, name in zip(rest, named, strict=True)), error
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    _, _, error = answer(["train", "all.toml", "--data.folder", "images", "--data.heldout", ""], tmp_path)
    assert error.startswith("error: all.toml: 6 settings are wrong\n")
    assert "data." not in error


def test_sections_and_paths_of_the_command_line_are_one_list(tmp_path: Path) -> None:
    sides = ["--sample.width", "13", "--sample.height", "11"]
    code, _, error = answer(["train", "tiny", *sides, "--train.init-from", "no.safetensors"], tmp_path)
    assert code == 2
    first, *rest = error.splitlines()
    assert first == "error: 3 settings are wrong"
    assert [line.split(" is ")[0].split(" does ")[0].strip() for line in rest] == [
        "sample.width 13", "sample.height 11", "train.init_from no.safetensors"
    ]  # fmt: skip


def test_options_and_paths_are_one_list(tmp_path: Path) -> None:
    """A value out of range hides neither the next, nor one that is no number, nor a path."""
    options = [
        "--train.steps",
        "0",
        "--optimizer.kind=foo",
        "--train.seed",
        "x",
        "--train.init-from",
        "no.safetensors",
    ]
    code, _, error = answer(["train", "tiny", *options, "--lora.rank", "4"], tmp_path)
    assert code == 2
    first, *rest = error.splitlines()
    assert first == "error: 4 settings are wrong"
    assert sorted(line.split(" is ")[0].split(" must ")[0].split(" does ")[0].strip() for line in rest) == [
        "--train.seed", "optimizer.kind 'foo'", "train.init_from no.safetensors", "train.steps 0"
    ]  # fmt: skip


@pytest.mark.parametrize("option", ["--help", "--help-all", "-h"])
def test_no_help_is_given_on_settings_that_are_refused(option: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(BAD_FILE)
    code, out, error = answer(["train", "bad.toml", option], tmp_path)
    assert (code, out) == (2, "")
    assert "unknown key train.stpes" in error


def test_an_unknown_option_hides_no_refusal_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(BAD_FILE)
    code, _, error = answer(["train", "bad.toml", "--trian.steps", "4"], tmp_path)
    assert code == 2
    assert "Unrecognized options: --trian.steps, 4" in error
    assert "unknown key train.stpes" in error


def test_all_wrong_paths_are_listed_at_once(tmp_path: Path) -> None:
    """In under a second of the processor's time: nothing is imported that takes longer."""
    (tmp_path / "paths.toml").write_text(WRONG_PATHS)
    code, out, error = answer(["train", "paths.toml"], tmp_path)
    assert (code, out) == (2, "")
    assert error.startswith("error: 5 paths of the settings are wrong\n")
    named = ("data.folder no/images", "data.heldout no/heldout", "train.init_from no/model.safetensors",
             "latents.weights no/vae.safetensors", "text.folder no/sdxl")  # fmt: skip
    assert [line.split(":")[0].split(" does")[0].strip() for line in error.splitlines()[1:]] == list(named)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["cache", "paths.toml", "--out", "c"], ["data.folder no/images", "train.init_from no/model.safetensors",
                                                 "latents.weights no/vae.safetensors", "text.folder no/sdxl"]),
        (["stats", "paths.toml", "--weights", "no.st"], ["data.folder no/images",
                                                         "train.init_from no/model.safetensors", "--weights no.st"]),
        (["init", "no", "--checkpoint", "no.safetensors"], ["the folder no", "no.safetensors"]),
    ],
    ids=["cache", "stats", "init"],
)  # fmt: skip
def test_so_are_those_of_what_encodes_and_begins(words: list[str], named: list[str], tmp_path: Path) -> None:
    (tmp_path / "paths.toml").write_text(WRONG_PATHS)
    code, out, error = answer(words, tmp_path)
    assert (code, out) == (2, "")
    first, *rest = error.splitlines()
    assert first == f"error: {len(named)} paths of the settings are wrong"
    assert [line.split(":")[0].split(" does")[0].strip() for line in rest] == named
    assert [path.name for path in tmp_path.iterdir()] == ["paths.toml"]


def test_what_is_not_encoded_is_not_asked_for(tmp_path: Path) -> None:
    """A held-out folder, a cache that is to be written, and the file that --weights takes the place of."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    (tmp_path / "my.toml").write_text("[data]\nheldout = 'no'\ncache = 'c'\n[text]\ntowers = 'tiny'\n"
                                      "[unet]\ncontext_dim = 96\nvector_dim = 1600\n")  # fmt: skip
    code, _, error = answer(["cache", "my.toml", "--out", "c", "--folder", "images"], tmp_path)
    assert (code, error) == (
        2,
        "error: no autoencoder to encode with; name its safetensors file with --weights\n",
    )


@pytest.mark.parametrize("module", ["train", "sample"])
def test_the_modules_answer_as_fast(module: str, tmp_path: Path) -> None:
    code, out, _ = answer(["--help"], tmp_path, MODULE.format(module))
    assert code == 0
    assert f"python -m refimpl.{module}" in out
    done = subprocess.run(
        [sys.executable, "-m", f"refimpl.{module}", "--help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, out)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["train", "--help"],
        ["train", "tiny", "--help-all"],
        ["train", "tiny", "--train.stepz", "3"],
        ["train", "paths.toml"],
    ],
    ids=" ".join,
)
def test_an_answer_takes_less_than_a_second(words: list[str], tmp_path: Path) -> None:
    """In the processor's time, which other programs do not change; the least of three: the first reads the disk."""
    (tmp_path / "paths.toml").write_text(WRONG_PATHS)

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer(words, tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < CPU_SECONDS
