"""The table of docs/scale.md, and its recipes as far as they can be read without a cluster."""

import re
import subprocess
from pathlib import Path

import pytest

from refimpl.commands.train import parse
from refimpl.errors import InputError
from refimpl.train.budget.cards import find_card
from refimpl.train.budget.counted import Counted
from refimpl.train.budget.live_memory import Timeline
from refimpl.train.budget.plan import Work as MicroBatch
from refimpl.train.scale.communication import Cluster, Work
from refimpl.train.scale.table import scale_table, step_of
from tests.tolerances import FLOAT64_ROUNDING
from tests.train import runs

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
SCRIPT = ROOT / "examples" / "slurm" / "train.sbatch"
UNET = 4 * 2_567_463_684  # bytes of SDXL's UNet in float32
# A step of novelai_v3 in TF32, 4 micro-batches of 2 images at 1024².
SDXL = Work(UNET, UNET, 8 * 20.2297e12 / 97e12, 4)


def test_the_document_shows_what_the_code_prints() -> None:
    """Digit by digit, but for the arithmetic, whose time is rounded here."""
    table = scale_table(SDXL, Cluster(32))
    assert table in DOCUMENT, table
    assert "ESTIMATES" in table


def test_a_step_is_its_images_arithmetic(root: Path, tmp_path: Path) -> None:
    config = runs.config(root, tmp_path)
    counted = Counted(10, 0, 8, 1, 8, 0, 0, 1, 1, Timeline(), Timeline(), {})
    one = step_of(config, counted, MicroBatch((32, 32), 2, 1), find_card("h100"))
    four = step_of(config, counted, MicroBatch((32, 32), 4, 2), find_card("h100"))
    assert one is not None
    assert four is not None
    assert four.seconds == pytest.approx(4 * one.seconds, rel=FLOAT64_ROUNDING)
    assert (one.weights, one.trained, four.accumulate) == (10, 8, 2)
    assert step_of(config, counted, MicroBatch((32, 32), 2, 1), find_card("24GB")) is None


def test_other_optimizers_are_not_estimated(root: Path, tmp_path: Path) -> None:
    counted = Counted(10, 0, 8, 1, 8, 0, 0, 1, 1, Timeline(), Timeline(), {})
    for sections in (
        {"optimizer": {"kind": "adafactor"}},
        {"train": {"weight_dtype": "bf16", "precision": "bf16"}},
    ):
        config = runs.config(root, tmp_path, **sections)
        with pytest.raises(
            InputError, match=r"--nodes estimates adamw on fp32 weights alone, not optimizer\.kind"
        ):
            step_of(config, counted, MicroBatch((32, 32), 2, 1), find_card("h100"))


def recipes() -> list[list[str]]:
    """Commands of the document that start a training, one word after another."""
    text = DOCUMENT.replace("\\\n", " ")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [line.split("#")[0].split() for line in lines if "refimpl.train" in line]


def test_the_recipes_are_command_lines_that_training_takes() -> None:
    found = recipes()
    assert len(found) >= 3
    for words in found:
        options = words[: words.index("-m")]
        assert options[0] == "torchrun"
        assert {option.split("=")[0] for option in options[1:]} <= {
            "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--max-restarts",
        }  # fmt: skip
        arguments = words[words.index("refimpl.train") + 1 :]
        if "--resume" not in arguments:
            parse(arguments)


def test_the_slurm_script_is_one() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert text.startswith("#!/bin/bash\n#SBATCH ")
    head = text[: text.index("\nset ")]  # Slurm reads no options after a command
    assert text.count("#SBATCH") == head.count("#SBATCH")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert len(options) == text.count("#SBATCH")
    assert set(options) <= {
        "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal", "output",
        "requeue", "open-mode",
    }  # fmt: skip
    assert options["ntasks-per-node"] == "1"  # one torchrun a node, which starts the rest
    assert int(options["nodes"]) * int(options["gpus-per-node"]) == 256
    assert re.fullmatch(r"B:USR1@\d+", options["signal"])
    assert re.fullmatch(r"\d+-\d\d:\d\d:\d\d", options["time"])


def slurm(tmp_path: Path, ranks: str) -> list[str]:
    """What the script calls when srun's first program does `ranks`; each call is a line."""
    (tmp_path / "bin").mkdir()
    calls, run = tmp_path / "calls", tmp_path / "run"
    stand_ins = {
        "scontrol": f'[ "$1" = show ] && echo node-0 || echo scontrol "$@" >> {calls}',
        "srun": f'echo srun "$@" >> {calls}; [ "$1" = --overlap ] && exit 0; mkdir -p {run}; {ranks}',
    }
    for name, lines in stand_ins.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/bash\n{lines}\n")
        program.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node-[0-31]", "SLURM_NNODES": "32",
        "SLURM_JOB_ID": "7", "SLURM_GPUS_PER_NODE": "8", "RUN": str(run), "PRESET": "novelai_v3",
    }  # fmt: skip
    subprocess.run(["bash", str(SCRIPT)], env=environment, capture_output=True, timeout=30, check=False)
    return calls.read_text().splitlines()


def test_a_failed_rank_is_resumed_from_three_times(tmp_path: Path) -> None:
    run = tmp_path / "run"
    calls = slurm(tmp_path, f"touch {run}/config.json; exit 1")
    assert "--nnodes=32 --nproc-per-node=8" in calls[0]
    assert "--rdzv-endpoint=node-0:29500" in calls[0]
    assert calls[0].endswith(f"-m refimpl.train novelai_v3 --train.out {run}")
    assert [call.partition("-m refimpl.train ")[2] for call in calls[1:]] == [f"--resume {run}"] * 3


def test_a_job_whose_time_is_up_goes_back_into_the_queue(tmp_path: Path) -> None:
    """The ranks are told, may take their time to save, and end with a code of their own."""
    calls = slurm(tmp_path, "kill -USR1 $PPID; sleep 0.5; exit 75")
    assert calls[1:] == [
        "srun --overlap --ntasks-per-node=1 pkill -USR1 -f -- -u -m refimpl.train", "scontrol requeue 7",
    ]  # fmt: skip


def test_a_finished_run_ends_the_job(tmp_path: Path) -> None:
    assert len(slurm(tmp_path, "exit 0")) == 1
