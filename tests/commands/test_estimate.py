"""`refimpl estimate`: the table, its exit status, and its errors."""

import re
from pathlib import Path

import pytest

from refimpl.commands.main import dispatch
from refimpl.commands.terminal import run_command
from tests.tolerances import PRINTED_DIGITS, PRINTED_SUM
from tests.train import runs


def ending(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: dispatch(["estimate", *words]))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_a_run_that_fits_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, error = ending(["tiny", "--gpu", "rtx4090"], capsys)
    assert (code, error) == (0, "")
    lines, speed = out.splitlines()[:-1], out.splitlines()[-1]
    assert "on NVIDIA GeForce RTX 4090: 16 images of " in lines[0]
    sizes = {line[:44].strip(): float(line[44:52]) for line in lines[3:-2]}
    held = ("weights of the UNet", "autoencoder and towers", "moments of AdamW", "moving average")
    assert sizes["held throughout"] == pytest.approx(sum(sizes[name] for name in held), abs=PRINTED_SUM)
    assert sizes["needed"] + sizes["left of the card"] == pytest.approx(23.5, abs=PRINTED_SUM)
    assert re.fullmatch(r"largest micro-batch that fits with these settings: \d+", lines[-2])
    assert re.fullmatch(
        r"UNet forward and backward: 0\.00 TFLOP per image, so at most [\d.]+ images/s at the card's 82\.6 TFLOP/s",
        lines[-1],
    )
    assert speed.startswith(
        "speed: not known for this network on NVIDIA GeForce RTX 4090 in tf32; --measure takes "
    )


def test_a_run_that_does_not_fit_ends_with_1_and_levers(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, error = ending(["tiny", "--gpu", "4GB", "--train.batch-size", "4096"], capsys)
    assert (code, error) == (1, "")
    assert "4096 images of" in out
    assert "too much for the card" in out
    assert "what saves memory, and what it costs:" in out
    assert "TFLOP/s" not in out  # no peak is known of 4 GB


def test_ranks_have_buckets(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ending(["tiny", "--gpu", "h200", "--ranks", "2"], capsys)
    assert code == 0
    assert "DDP's gradient buckets" in out
    assert "of rank 0 of 2" in out


def test_ranks_share_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    shown = ["tiny", "--gpu", "h200", "--ranks", "8", "--train.sharding", "shard"]
    code, out, _ = ending(shown, capsys)
    assert code == 0
    assert "weights and gradients under way in FSDP2" in out
    assert "DDP's gradient buckets" not in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["tinny"], 2, "the nearest preset is 'tiny'"),
        (["lora24gb"], 2, "the nearest preset is 'lora_24gb'"),
        ([""], 2, "error: name a preset (finetune_24gb, "),
        (["tiny", "--gpu", "rtx490"], 2, "the nearest is 'rtx4090'"),
        (["tiny", "--gpu", "-3GiB"], 2, "--gpu '-3GiB' is neither a known card"),
        (["tiny", "--gpu", "nan"], 2, "nor an amount of memory with its unit, as in 24GB or 22.5GiB"),
        (["tiny", "--ranks", "0"], 2, "error: --ranks 0 must be at least 1"),
        (
            ["tiny", "--gpu", "24"],
            2,
            "error: --gpu '24': an amount of memory needs its unit, as in 24GB or 24GiB",
        ),
        (
            ["tiny", "--train.precision", "fp8"],
            2,
            "error: train.precision 'fp8' is unknown; use tf32, fp32, bf16",
        ),
        (["tiny", "--train.stepz", "3"], 2, "--train.stepz"),
        (
            ["tiny", "--ranks", "3", "--train.sharding", "hybrid", "--train.ranks-per-node", "2"],
            2,
            "'hybrid' needs a whole number of nodes, but train.ranks_per_node says 2 ranks on each",
        ),
        ([], 2, "Missing from refimpl estimate: STR Preset or TOML file"),
    ],
)
def test_bad_input(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, out, error = ending(words, capsys)
    assert (found, out) == (code, "")
    assert said in " ".join(error.replace("│", "").split())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("k.toml", "pretrained_model_name_or_path = 'x'\nnetwork_dim = 4\ntrain_data_dir = 'i'",
         "k.toml is a configuration of sd-scripts, not of refimpl; translate it with `refimpl init --import k.toml`"),
        ("o.json", '{"training_method": "LORA", "base_model_name": "m", "concepts": [{"path": "i"}]}',
         "o.json is a configuration of OneTrainer, not of refimpl; translate it with `refimpl init --import o.json`"),
        ("a.toml", "[train\n", "a.toml is not valid TOML: Expected ']'"),
        ("a.toml", "[optimizer]\nlearning_rate = nan", "optimizer.learning_rate nan must be positive and finite"),
        ("a.png", "\x89PNG\x00", "a.png is not text; give a TOML or JSON file"),
    ],
)  # fmt: skip
def test_files_that_are_no_settings_are_one_line(
    name: str,
    content: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content, encoding="latin-1")
    code, out, error = ending([name, "--gpu", "h100"], capsys)
    assert (code, out) == (2, "")
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1


def test_a_cluster_is_estimated_where_the_card_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ending(["tiny", "--gpu", "h100", "--nodes", "4"], capsys)
    assert code == 0
    assert "on 4 nodes of 8 GPUs: ESTIMATES" in out
    assert re.search(r"^hybrid +[\d.]+ ", out, re.MULTILINE)
    code, _, error = ending(["tiny", "--gpu", "24GB", "--nodes", "4"], capsys)
    assert code == 2
    assert "--nodes: the speed of a GPU of 24GB in tf32 is not known; name another --gpu" in error


def test_full_size_has_hours_from_the_roofline(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "novelai_v3",
        "--gpu",
        "h100",
        "--train.steps",
        "1000",
        "--unet.transformer-depth",
        "0",
        "0",
        "1",
    ]
    code, out, _ = ending(
        [*words, "--unet.middle-depth", "1", "--train.activation-checkpointing", "none"], capsys
    )
    assert code == 0
    speed, end = out.splitlines()[-2:]
    found = re.fullmatch(
        r"speed: ([\d.]+) images/s, from the roofline, nothing measured: 19\.6% of the card's 494\.7 TFLOP/s, the "
        r"share that an H200 reached at 1024²",
        speed,
    )
    assert found
    hours = re.match(r"to the end: ([\d.]+) minutes for 1,000 steps of 8 images; ", end)
    assert hours
    assert float(hours[1]) * 60 * float(found[1]) == pytest.approx(8000, rel=PRINTED_DIGITS)


def test_measured_here(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refimpl.train.speed.measured.MEASURED", 5)
    toml = runs.write_toml(root, tmp_path / "a.toml", tmp_path / "out", train={"steps": 50})
    code, out, _ = ending([toml, "--measure"], capsys)
    assert code == 0
    speed, end = out.splitlines()[-2:]
    assert re.fullmatch(
        r"speed: [\d.]+ images/s, measured on this machine's CPU over 5 steps after a warm-up, with random "
        r"weights",
        speed,
    )
    assert " for 50 steps of 4 images; samples, held-out loss and checkpoints come on top" in end
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("extra", [["--gpu", "h100"], ["--ranks", "2"]])
def test_only_this_machine_can_be_measured(extra: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, error = ending(["tiny", "--measure", *extra], capsys)
    assert (code, out) == (2, "")
    assert "--measure takes steps on this machine, in one process" in " ".join(error.replace("│", "").split())


def test_what_is_measured_needs_its_images(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, error = ending(["novelai_v3", "--measure", "--data.folder", "no/images"], capsys)
    assert (code, out) == (2, "")
    assert error.startswith("error: data.folder no/images: there is no such folder")


@pytest.mark.parametrize(
    "words",
    [
        ["tiny", "--gpu", "rtx490"],
        ["tiny", "--gpu", "24"],
        ["tiny", "--ranks", "0"],
        ["tiny", "--measure", "--gpu", "h100"],
        ["tiny", "--train.precision", "fp8"],
        ["tiny", "--optimizer.kind", "adafactor", "--train.sharding", "shard"],
    ],
)
def test_what_is_refused_on_the_command_line_is_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, error = ending(words, capsys)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert error.startswith("error: ")
    assert "Command" not in error
    assert "Config" not in error


def test_a_preset_for_24_gb_fits_a_card_named_so(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ending(["finetune_24gb", "--gpu", "24GB"], capsys)
    assert code == 0
    assert "too much for the card" not in out
