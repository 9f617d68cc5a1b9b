"""`refimpl push` against a stand-in of a hub on this machine: what arrives there, and what is said when it can't."""

import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file as save_tensors

from refimpl.commands.main import dispatch
from refimpl.commands.train import parse
from refimpl.errors import InputError
from refimpl.interop import hub as hub_module
from refimpl.interop.hub import check_repo
from refimpl.interop.model_card import without_places
from refimpl.interop.run.run_folder import load_model
from tests.commands.files.hub_server import Hub, hub_running

REPO = "alice/my-model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that takes large files over HTTP, and a token that it accepts."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with hub_running() as running:
        monkeypatch.setattr("huggingface_hub.get_token", lambda: running.token)
        yield running


def push(run: Path, *words: str) -> None:
    dispatch(["push", str(run), *words])


def test_a_run_arrives_private_with_its_card(
    trained: Path, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = sorted(run.iterdir())
    push(run, REPO, "--endpoint", hub.endpoint, "--dtype", "fp32", "--license", "openrail++")
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == f"pushed: {hub.endpoint}/{REPO} (private)"
    assert hub.token not in said.out + said.err
    assert hub.repos == {REPO: True}
    assert hub.commits == ["refimpl: step 4 of run"]
    assert sorted(run.iterdir()) == before  # the folder that was uploaded is gone
    assert set(hub.files) >= {
        "README.md",
        "model_index.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
    }

    unet = load_tensors(hub.files["unet/diffusion_pytorch_model.safetensors"])
    wanted = load_model(run)[0].unet.state_dict()
    assert sum(tensor.numel() for tensor in unet.values()) == sum(
        tensor.numel() for tensor in wanted.values()
    )
    assert torch.equal(unet["conv_in.weight"], wanted["input_blocks.0.0.weight"])

    card = hub.files["README.md"].decode()
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL).groups()  # type: ignore[union-attr]
    for line in ("library_name: diffusers", 'license: "openrail++"', "- v-prediction", "- zero-terminal-snr"):
        assert line in front.splitlines()
    for text in (
        "trained for 4 steps with refimpl",
        f"pipe = StableDiffusionXLPipeline.from_pretrained('{REPO}')",
        "prediction_type='v_prediction', rescale_betas_zero_snr=True",
        "rescaled to zero terminal SNR",
        "0 to 999, where σ_edm is ∞",
    ):
        assert text in body, text
    scheduler = json.loads(hub.files["scheduler/scheduler_config.json"])
    assert (scheduler["prediction_type"], scheduler["rescale_betas_zero_snr"]) == ("v_prediction", True)
    settings = json.loads(body.partition("```json\n")[2].partition("\n```")[0])
    assert settings["train"]["steps"] == 4
    assert settings["data"]["folder"] == "train"
    assert str(trained.parent) not in card


def test_a_dry_run_writes_what_diffusers_opens(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It needs no token, and nothing is sent."""
    from diffusers import StableDiffusionXLPipeline

    monkeypatch.setattr(hub_module, "upload", lambda *_: pytest.fail("uploaded"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: pytest.fail("asked for a token"))
    out = tmp_path / "folder"
    push(trained, REPO, "--dry-run", "--out", str(out), "--dtype", "")
    assert f"{out}: README.md and " in capsys.readouterr().out
    assert not list(out.parent.glob(".*"))
    pipe = StableDiffusionXLPipeline.from_pretrained(out)
    assert pipe.scheduler.config["prediction_type"] == "v_prediction"
    assert pipe.scheduler.config["rescale_betas_zero_snr"]
    with pytest.raises(InputError, match="exists already; give another name with --out"):
        push(trained, REPO, "--dry-run", "--out", str(out))


def test_a_lora_arrives_as_a_file_with_the_scheduler_it_needs(
    trained: Path, run: Callable[..., Path], hub: Hub, tmp_path: Path
) -> None:
    adapted = run(lora={"rank": 2}, train={"init_from": str(trained)})
    push(adapted, REPO, "--endpoint", hub.endpoint, "--out", str(tmp_path / "kept"))
    assert set(hub.files) == {"README.md", "my-model.safetensors"}
    assert (tmp_path / "kept" / "my-model.safetensors").read_bytes() == hub.files["my-model.safetensors"]
    card = hub.files["README.md"].decode()
    assert f"pipe.load_lora_weights('{REPO}', weight_name='my-model.safetensors')" in card
    assert "- lora" in card.splitlines()
    assert (
        "pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, prediction_type='v_prediction'" in card
    )


def test_a_public_repository_must_be_asked_for(trained: Path, tmp_path: Path, hub: Hub) -> None:
    hub.repos[REPO] = False
    words = (REPO, "--endpoint", hub.endpoint, "--out")
    with pytest.raises(InputError, match=f"{REPO} exists and is public; say --public"):
        push(trained, *words, str(tmp_path / "1"))
    assert hub.files == {}
    push(trained, *words, str(tmp_path / "2"), "--public")
    assert "README.md" in hub.files
    assert hub.repos == {REPO: False}


def test_no_finished_run_is_an_error(trained: Path, tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(InputError, match=r"nowhere does not exist"):
        push(tmp_path / "nowhere", REPO)
    with pytest.raises(InputError, match=r"holds no checkpoint"):
        push(tmp_path, REPO)
    early = trained / "checkpoints" / "step-00000002"
    with pytest.raises(InputError, match=rf"2 of 4 steps; go on with `refimpl train --resume {trained}`"):
        push(early, REPO)
    assert hub.requests == []
    push(early, REPO, "--unfinished", "--dry-run", "--out", str(tmp_path / "early"))
    assert "trained for 2 steps" in (tmp_path / "early" / "README.md").read_text()


def test_no_token_is_told_before_anything_is_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError, match="no token for the hub: call `hf auth login`, or set HF_TOKEN"):
        push(trained, REPO, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_refused_token_is_not_shown(
    trained: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    with pytest.raises(InputError, match=rf"refuses the token for {REPO} \(401\)") as refused:
        push(run, REPO, "--endpoint", hub.endpoint)
    assert "hf_secret" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert not (run / "hub").exists()


def test_a_hub_that_is_not_there_is_one_line(trained: Path, tmp_path: Path, hub: Hub) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=f"can't reach {nowhere} .*look at the network") as refused:
            push(trained, REPO, "--endpoint", nowhere, "--out", str(tmp_path / "out"))
    assert "\n" not in str(refused.value)


def test_a_hub_that_fails_midway_is_one_line(
    trained: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the library's own tries
    hub.failing = "/commit/"
    with pytest.raises(InputError, match=rf"refuses {REPO} \(503\): .*; call again later") as refused:
        push(trained, REPO, "--endpoint", hub.endpoint, "--out", str(tmp_path / "out"))
    assert "\n" not in str(refused.value)
    assert hub.files == {}


CREATE, LOOK, BLOBS, COMMIT = "/repos/create", f"/api/models/{REPO}", "/blobs/", "/commit/"


@pytest.mark.parametrize(
    ("path", "how", "said"),
    [
        (CREATE, 401, r"refuses the token for alice/my-model \(401\); use one that may write there"),
        (CREATE, 403, r"refuses the token for alice/my-model \(403\); use one that may write there"),
        (COMMIT, 403, r"refuses the token for alice/my-model \(403\); use one that may write there"),
        (COMMIT, 404, r"refuses alice/my-model \(404\): [^;]*$"),
        (LOOK, 500, r"refuses alice/my-model \(500\): .*; call again later"),
        (BLOBS, 429, r"refuses alice/my-model \(429\): .*; call again later"),
        (LOOK, "half", r"can't reach http://127.*; look at the network and call again"),
        (BLOBS, "closed", r"can't reach http://127.*; look at the network and call again"),
        (COMMIT, "late", r"can't reach http://127.*; look at the network and call again"),
        (LOOK, "no JSON", r"is http://127.* the address of a Hugging Face hub\?"),
        (CREATE, "empty", r"is http://127.* the address of a Hugging Face hub\?"),
        (COMMIT, "list", r"is http://127.* the address of a Hugging Face hub\?"),
    ],
)
def test_whatever_a_hub_answers_is_one_line(
    path: str,
    how: int | str,
    said: str,
    tmp_path: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And the same upload succeeds, once the hub works."""
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the library's own tries
    monkeypatch.setattr(hub_module, "SILENCE", 0.5)
    (tmp_path / "README.md").write_text("a card")
    save_tensors({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    hub.failing, hub.how = path, how
    with pytest.raises(InputError, match=said) as refused:
        hub_module.upload(tmp_path, REPO, hub.token, "a message", endpoint=hub.endpoint)
    assert "\n" not in str(refused.value)
    assert "developer.mozilla" not in str(refused.value)
    assert hub.files == {}
    hub.failing = ""
    hub_module.upload(tmp_path, REPO, hub.token, "a message", endpoint=hub.endpoint)
    assert set(hub.files) == {"README.md", "x.safetensors"}
    assert capsys.readouterr().err == ""


@pytest.fixture
def python_handles_sigint() -> Iterator[None]:
    """A shell has its background jobs ignore SIGINT, these tests among them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_handles_sigint")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_upload_that_is_interrupted_leaves_nothing_and_can_be_made_again(
    number: signal.Signals, trained: Path, tmp_path: Path, hub: Hub
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before, handler = sorted(run.iterdir()), signal.getsignal(signal.SIGTERM)
    interrupted: list[str] = []

    def told(path: str) -> None:
        if COMMIT in path and not interrupted:
            interrupted.append(path)
            os.kill(os.getpid(), number)
            time.sleep(0.2)  # seconds, in which the signal is handled

    hub.told = told
    with pytest.raises(KeyboardInterrupt):
        push(run, REPO, "--endpoint", hub.endpoint)
    assert sorted(run.iterdir()) == before
    assert signal.getsignal(signal.SIGTERM) == handler
    push(run, REPO, "--endpoint", hub.endpoint)
    assert "README.md" in hub.files


def test_what_a_killed_upload_left_is_told(trained: Path, tmp_path: Path, hub: Hub) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "hub").mkdir()
    with pytest.raises(
        InputError, match=r"run/hub exists already \(left by an upload that was killed, unless you"
    ):
        push(run, REPO, "--endpoint", hub.endpoint)
    assert (run / "hub").is_dir()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--endpoint", "not a url"), "--endpoint 'not a url' is not an address"),
        (("--endpoint", "ftp://x"), "--endpoint 'ftp://x' is not an address"),
        (("--endpoint", "http://"), "--endpoint 'http://' is not an address"),
        (("--endpoint", "http://x:99999"), "--endpoint 'http://x:99999' is not an address"),
        (("--license", "No such!"), "--license 'No such!' is not spelt as hubs do"),
    ],
)
def test_what_no_hub_takes_is_told_before_anything_is_written(
    words: tuple[str, ...], said: str, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        push(trained, REPO, *words, "--out", str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_without_the_library_the_line_that_installs_it_is_told(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r'pip install "huggingface_hub>=0.34"'):
        push(trained, REPO)
    assert huggingface_hub


@pytest.mark.parametrize(
    "name",
    [
        "model",
        "a/b/c",
        "a b/c",
        "alice/",
        "/model",
        "alice/a..b",
        "https://x/y",
        "ü/é",
        "-a/b",
        "a/b.",
        "a/.b",
        "a/b-",
        "a/b.git",
        "a/" + "x" * 97,
        "",
        "a/b\n",
    ],
)
def test_names_that_no_hub_takes_are_told(name: str) -> None:
    with pytest.raises(InputError, match="give USER/NAME"):
        check_repo(name)


def test_no_setting_tells_where_a_file_lies() -> None:
    """Each setting of the configuration that names a place keeps its last part alone."""
    place = "/home/alice/secret/thing"
    config, _ = parse(
        ["tiny", "--train.init-from", place, "--latents.scale-shift", place, "--data.folder", place]
    )
    from refimpl.tables import to_table

    told = without_places(to_table(config))
    assert (told["train"]["init_from"], told["data"]["folder"]) == ("thing", "thing")
    assert "secret" not in json.dumps(told)
    stages = without_places({"stages": [{"folder": place}, {"folder": "C:\\Users\\alice\\x"}]})
    assert stages == {"stages": [{"folder": "thing"}, {"folder": "x"}]}
