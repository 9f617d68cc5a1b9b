"""Presets validate, bad settings end in one message that names the value."""

import ast
import dataclasses
import tomllib
import typing
from pathlib import Path

import pytest
import torch

import refimpl
from refimpl.commands.terminal import run_command
from refimpl.commands.train import parse
from refimpl.errors import InputError
from refimpl.latents.vae import VAE, VAEConfig
from refimpl.model.unet import UNet, UNetConfig
from refimpl.run.config import Config
from refimpl.run.presets import load_config, preset_names
from refimpl.tables import from_table, to_table

UNET_SIZE = 2_567_463_684
VAE_SIZE = 83_653_863


def test_presets_are_the_ones_promised() -> None:
    assert {"tiny", "sdxl_base", "novelai_v3"} <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_presets_validate_and_survive_json(name: str) -> None:
    config = load_config(name)
    assert from_table(Config, to_table(config), name) == config


@pytest.mark.parametrize(
    ("name", "unet", "vae"),
    [
        ("tiny", UNetConfig.tiny(), VAEConfig.tiny()),
        ("sdxl_base", UNetConfig.sdxl(), VAEConfig.sdxl()),
        ("novelai_v3", UNetConfig.sdxl(), VAEConfig.sdxl()),
    ],
)
def test_presets_spell_out_the_named_architectures(name: str, unet: UNetConfig, vae: VAEConfig) -> None:
    config = load_config(name)
    assert (config.unet, config.vae) == (unet, vae)


@pytest.mark.parametrize("name", ["sdxl_base", "novelai_v3"])
def test_full_size_presets_build_on_the_meta_device(name: str) -> None:
    config = load_config(name)
    with torch.device("meta"):
        unet, vae = UNet(config.unet), VAE(config.vae)
    assert sum(p.numel() for p in unet.parameters()) == UNET_SIZE
    assert sum(p.numel() for p in vae.parameters()) == VAE_SIZE


def test_novelai_v3_is_what_the_report_says() -> None:
    config = load_config("novelai_v3")
    assert config.diffusion.parameterisation == "v"
    assert config.diffusion.zero_terminal_snr
    assert (config.diffusion.loss_weight, config.diffusion.min_snr_gamma) == ("paper", 5.0)
    assert config.train.precision == "tf32"
    assert config.text.pooling == "mean"
    assert config.tag_weights.enabled
    assert (832, 1216) in config.buckets.sizes()
    assert (config.sample.grid, config.sample.steps) == ("native", 28)


def test_sdxl_base_stages_are_the_papers() -> None:
    stages = load_config("sdxl_base").all_stages()
    assert [stage.from_step for stage in stages] == [0, 600_000, 800_000]
    assert [stage.buckets.sizes() for stage in stages[:2]] == [[(256, 256)], [(512, 512)]]
    assert [stage.offset_noise for stage in stages] == [0, 0, 0.05]
    assert load_config("sdxl_base").train.batch_size * 256 == 2048  # on 256 ranks


def test_a_stage_may_have_a_batch_of_its_own() -> None:
    """R's progressive batching: later stages, of larger images, take fewer of them or more."""
    table = to_table(load_config("sdxl_base"))
    table["stages"][1]["batch_size"] = 3
    config = from_table(Config, table, "stages")
    sizes = [stage.batch_size or config.train.batch_size for stage in config.all_stages()]
    assert sizes == [8, 3, 8]


BAD_FILES = {
    "[train]\nstpes = 3": ["unknown key train.stpes", "train.steps"],
    "[trian]\nsteps = 3": ["unknown key trian", "train"],
    "steps = 3": ["unknown key steps", "train.steps"],
    "[train]\nsteps = 0": ["train.steps 0"],
    '[train]\nsteps = "many"': ["train.steps must be int", "many"],
    "[train]\nbatch_size = -1": ["train.batch_size -1"],
    "[train]\nema_decay = 1.0": ["train.ema_decay 1.0"],
    "[train]\nactivation_checkpointing = true": ["activation_checkpointing True", "none, cheap, full"],
    "[train]\ncaption_dropout = 1.5": ["train.caption_dropout 1.5"],
    '[train]\nprecision = "fp8"': ["train.precision 'fp8'", "tf32"],
    "[buckets]\nstep = 12\nmax_area = 4096\nmax_side = 120\nmin_side = 36": ["multiple of 8", "12"],
    "[buckets]\nmin_side = 2048\nmax_side = 512": ["min_side", "2048"],
    '[diffusion]\nparameterisation = "eps"': ["eps", "zero-terminal-SNR", "SNR is 0"],
    '[diffusion]\nloss_weight = "papre"': ["papre", "'paper'"],
    '[sample]\ngrid = "leading"': ["leading", "t = 999"],
    '[sample]\nterminal = "2000"': ["sample.terminal '2000'", "the nearest is '20000'"],
    '[sample]\nterminal = "4096"\n[diffusion]\nzero_terminal_snr = false': [
        "sample.terminal 4096",
        "use exact",
    ],
    "[sample]\nwidth = 60": ["sample.width 60", "8"],
    "[unet]\nchannels = 1000000000000": ["UNetConfig.channels = 1000000000000", "above 1048576"],
    "[vae]\nchannels = 1000000000000000000000000": ["VAEConfig.channels", "above 1048576"],
    "[unet]\ncontext_dim = 100": ["context_dim 100", "96"],
    "[optimizer]\nlearning_rate = nan": ["learning_rate nan"],
    "[train]\npixel_budget = 100": ["pixel_budget 100", "px"],
    "[[stages]]\nfrom_step = 5": ["stages.from_step [5]", "begin with 0"],
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_bad_settings_name_the_value(text: str, tmp_path: Path) -> None:
    preset = Path(refimpl.__file__).parent / "configs" / "tiny.toml"
    table = tomllib.loads(preset.read_text(encoding="utf-8"))
    for key, value in tomllib.loads(text).items():
        table[key] = {**table.get(key, {}), **value} if isinstance(value, dict) else value
    with pytest.raises(InputError) as error:
        from_table(Config, table, "mine.toml")
    for part in BAD_FILES[text]:
        assert part in str(error.value)


def test_broken_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[train\nsteps = 1", encoding="utf-8")
    with pytest.raises(InputError, match=r"mine\.toml is not valid TOML.*line 1"):
        load_config(str(path))


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(InputError, match="nearest preset is 'tiny'"):
        load_config("tinny")


def test_overrides_on_the_command_line() -> None:
    config, label = parse(["tiny", "--train.steps", "20", "--train.resume", "--buckets.step", "16"])
    assert (config.train.steps, config.train.resume, config.buckets.step, label) == (20, True, 16, "tiny")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (["--train.out", "\udcff"], r"train.out '\udcff' is not UTF-8"),
        (["--train.threads", "1000000000000"], "train.threads 1000000000000 must be at most 4096"),
        (["--data.workers", "1000000000000"], "data.workers 1000000000000 must be at most 1024"),
        (["--text.seed", "-1"], "text.seed -1 must lie in 0"),
        (["--text.seed", str(2**63)], f"text.seed {2**63} must lie in 0"),
        (["--train.steps", "0"], "train.steps 0"),
        (["--diffusion.parameterisation", "eps"], "zero-terminal-SNR"),
    ],
)
def test_bad_overrides_are_one_line(bad: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: print(parse(["tiny", *bad])))
    assert stop.value.code == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith("error: ")
    assert message in error


def test_unknown_override_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["tiny", "--train.stpes", "20"])
    assert stop.value.code == 2
    assert "--train.steps" in capsys.readouterr().err


def fields_with_place(cls: type, place: str = "") -> list[tuple[str, str]]:
    found = []
    for name, kind in typing.get_type_hints(cls).items():
        inner = [kind, *typing.get_args(kind)]
        nested = [k for k in inner if dataclasses.is_dataclass(k)]
        if nested:
            found += fields_with_place(typing.cast(type, nested[0]), f"{place}{name}.")
        else:
            found.append((place, name))
    return found


def test_every_field_is_read_somewhere() -> None:
    read = set()
    for path in Path(refimpl.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        # A check of a field when its dataclass is built does not use it.
        checks = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "__post_init__"]
        checking = {id(node) for check in checks for node in ast.walk(check)}
        read |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and id(n) not in checking}
    unread = [place + name for place, name in fields_with_place(Config) if name not in read]
    assert not unread
