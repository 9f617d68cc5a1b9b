"""Tables ↔ dataclasses: a round trip keeps everything, and a mistake is named where it stands."""

import dataclasses
import json
import math
import pickle
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.errors import InputError, WrongSettings
from refimpl.run.config import Config, Stage
from refimpl.run.settings.paths import problems_here
from refimpl.tables import from_table, to_table
from tests.strategies import run_configs


@dataclass(frozen=True)
class Inner:
    size: int = 3
    name: str = "x"
    rate: float | None = None


@dataclass(frozen=True)
class Outer:
    needed: int
    inner: Inner
    mode: Literal["a", "b"] = "a"
    pair: tuple[int, float] = (1, 2.0)
    many: tuple[Inner, ...] = ()
    nested: tuple[tuple[int, int], ...] = ()
    flag: bool = False
    other: Inner = field(default_factory=Inner)


FULL = {
    "needed": 1,
    "inner": {"size": 4, "rate": 2},
    "mode": "b",
    "pair": [3, 4],
    "many": [{"size": 1}, {}],
    "nested": [[1, 2], [3, 4]],
    "flag": True,
}


def test_every_kind_of_field() -> None:
    built = from_table(Outer, FULL, "a.toml")
    assert built == Outer(
        1, Inner(4, rate=2.0), "b", (3, 4.0), (Inner(1), Inner()), ((1, 2), (3, 4)), True, Inner()
    )
    assert type(built.pair[1]) is float
    assert type(built.inner.rate) is float
    assert from_table(Outer, {"needed": 1}, "x") == Outer(1, Inner())
    assert from_table(Outer, to_table(built), "x") == built


@given(run_configs())
def test_configurations_survive_json(config: Config) -> None:
    table = to_table(config)
    assert json.loads(json.dumps(table)) == table
    again = from_table(Config, table, "x")
    assert again == config
    assert to_table(again) == table
    assert all(isinstance(stage, Stage) for stage in again.stages)


@given(run_configs(), st.data())
def test_a_key_left_out_is_its_default_or_named(config: Config, data: st.DataObject) -> None:
    table = to_table(config)
    section = data.draw(st.sampled_from(["data", "train", "optimizer", "diffusion", "text", "tag_weights"]))
    key = data.draw(st.sampled_from(sorted(table[section])))
    del table[section][key]
    cls = type(getattr(config, section))
    default = next(entry.default for entry in dataclasses.fields(cls) if entry.name == key)
    try:
        rebuilt = from_table(Config, table, "x")
    except InputError:  # the default does not go with the rest, and is refused as any other value
        assert default != getattr(getattr(config, section), key)
    else:
        assert getattr(getattr(rebuilt, section), key) == default


BAD: list[tuple[Any, str]] = [
    ({}, "a.toml: needed is missing"),
    ([], r"a\.toml: all of it must be a table, not \[\]"),
    ({**FULL, "inner": 3}, "inner must be a table, not 3"),
    ({**FULL, "neded": 3}, r"unknown key neded; did you mean needed\?"),
    ({**FULL, "inner": {"siez": 3}}, r"unknown key inner\.siez; did you mean inner\.size\?"),
    ({**FULL, "size": 3}, r"unknown key size; did you mean inner\.size\?"),
    ({**FULL, "inner": {"flag": True}}, r"unknown key inner\.flag; did you mean "),
    ({**FULL, "many": [{}, {"nme": "y"}]}, r"unknown key many\[1\]\.nme; did you mean many\[1\]\.name\?"),
    ({**FULL, "needed": 1.0}, r"needed must be int, not 1\.0"),
    ({**FULL, "needed": True}, "needed must be int, not True"),
    ({**FULL, "needed": None}, "needed must be int, not None"),
    ({**FULL, "flag": 1}, "flag must be bool, not 1"),
    ({**FULL, "mode": "c"}, "mode 'c' is unknown; use a, b"),
    ({**FULL, "mode": ["a"]}, r"mode \['a'\] is unknown"),
    ({**FULL, "pair": [1]}, "pair must have 2 entries, not 1"),
    ({**FULL, "pair": [1, "x"]}, r"pair\[1\] must be float, not 'x'"),
    ({**FULL, "pair": "12"}, "pair must be a list, not '12'"),
    ({**FULL, "nested": [[1, 2], [3]]}, r"nested\[1\] must have 2 entries"),
    ({**FULL, "many": {"size": 1}}, "many must be a list"),
    ({**FULL, "inner": {"rate": "fast"}}, r"inner\.rate must be float, not 'fast'"),
    ({**FULL, "inner": {"name": 3}}, r'inner\.name must be str, not 3; write it in quotes: "3"'),
]


@pytest.mark.parametrize(("table", "message"), BAD)
def test_a_mistake_is_named_where_it_stands(table: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        from_table(Outer, table, "a.toml")
    assert str(error.value).startswith("a.toml: ")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    )
)
def test_no_table_whatever_ends_in_another_error(table: Any) -> None:
    for cls in (Outer, Inner):
        for value in (table, {"needed": table}, {"needed": 1, "inner": table}, {"needed": 1, "many": table}):
            try:
                assert isinstance(from_table(cls, value, "x"), cls)
            except InputError:
                continue


def test_numbers_that_json_does_not_know_are_not_written() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            to_table(Inner(rate=value))


def test_everything_that_is_wrong_is_listed_at_once() -> None:
    table = {
        "neeeded": 1, "modde": 1, "inner": {"size": "x", "naem": 1}, "mode": "c", "pair": [1],
        "many": [{}, {"sizee": 1}], "flag": 0,
    }  # fmt: skip
    with pytest.raises(InputError) as error:
        from_table(Outer, table, "a.toml")
    assert str(error.value).splitlines() == [
        "a.toml: 9 settings are wrong",
        "  unknown key neeeded; did you mean needed?",
        "  unknown key modde; did you mean mode?",
        "  needed is missing",
        "  unknown key inner.naem; did you mean inner.name?",
        "  inner.size must be int, not 'x'",
        "  mode 'c' is unknown; use a, b",
        "  pair must have 2 entries, not 1",
        "  unknown key many[1].sizee; did you mean many[1].size?",
        "  flag must be bool, not 0",
    ]


def test_what_two_dataclasses_refuse_is_listed_together() -> None:
    with pytest.raises(InputError) as error:
        from_table(
            Config, {"train": {"steps": 0}, "optimizer": {"beta1": 2.0}, "data": {"foldr": ""}}, "a.toml"
        )
    assert str(error.value).splitlines() == [
        "a.toml: 3 settings are wrong",
        "  unknown key data.foldr; did you mean data.folder?",
        "  optimizer.beta1 2.0 is outside [0, 1)",
        "  train.steps 0 must be at least 1",
    ]
    with pytest.raises(InputError, match=r"key train\.step; did you mean train\.steps, or buckets\.step\?"):
        from_table(Config, {"train": {"step": 5}}, "a.toml")
    with pytest.raises(
        InputError, match=r"key train\.learning_rate; did you mean optimizer\.learning_rate\?"
    ):
        from_table(Config, {"train": {"learning_rate": 1e-5}}, "a.toml")
    with pytest.raises(InputError, match=r"^train\.steps 0 must be at least 1$"):
        from_table(Config, {"train": {"steps": 0}}, "a.toml")


def wrong(table: dict[str, Any]) -> list[str]:
    """What is said of the settings of a file, without its first line."""
    with pytest.raises(InputError) as error:
        from_table(Config, table, "a.toml")
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def test_values_out_of_range_do_not_hide_one_another() -> None:
    said = wrong({"optimizer": {"kind": "adamw9", "learning_rate": -1.0, "clip_norm": -2.0}})
    assert [line.split(" ")[0] for line in said] == [
        "optimizer.kind", "optimizer.learning_rate", "optimizer.clip_norm"
    ]  # fmt: skip


def test_an_unknown_key_or_a_wrong_type_hides_no_range() -> None:
    section = {"stepz": 3, "seed": "x", "batch_size": 0, "precision": "fp8", "device": "tpu"}
    assert [line.split(";")[0].split(" is unknown")[0] for line in wrong({"train": section})] == [
        "unknown key train.stepz", "train.seed must be int, not 'x'", "train.batch_size 0 must be at least 1",
        "train.device 'tpu'", "train.precision 'fp8'",
    ]  # fmt: skip


def test_what_speaks_of_a_mistyped_setting_is_not_said() -> None:
    """Whether ranks_per_node goes with the sharding is not known until the sharding is."""
    mistyped = {"train": {"shardin": "hybrid", "ranks_per_node": 2}, "data": {"foldr": "x"}}
    unknown = {"train": {"sharding": "hybrd", "ranks_per_node": 2}, "data": {"foldr": "x"}}
    assert [line.split(" ")[:3] for line in wrong(mistyped)] == [
        ["unknown", "key", "data.foldr;"], ["unknown", "key", "train.shardin;"]
    ]  # fmt: skip
    assert [line.split(" ")[0] for line in wrong(unknown)] == ["unknown", "train.sharding"]


def test_a_setting_is_named_as_the_file_has_it_and_once() -> None:
    stages = [
        {"from_step": 0, "buckets": {"preset": "sdxk"}},
        {"from_step": 0, "buckets": {"min_side": 3000}},
    ]
    assert [line.split("; ")[0].split(" must")[0] for line in wrong({
        "buckets": {"step": 0, "max_side": -1}, "unet": {"context_dim": 0, "groups": "x"},
        "text": {"towers": "tinny"}, "data": {"cache": 5, "cache_megabytes": -1}, "stages": stages,
    })] == [
        "data.cache", "data.cache_megabytes -1", "bucket step = 0: it is in pixels and",
        "bucket min_side = 512 is above max_side = -1: no side fits",
        "text.towers 'tinny' is unknown", "unet.groups", "UNetConfig.context_dim = 0: needs whole numbers ≥ 1",
        "stages[0].buckets.preset 'sdxk' is unknown",
        "stages[1].buckets: bucket min_side = 3000 is above max_side = 2048: no side fits",
        "stages.from_step [0, 0]",
    ]  # fmt: skip
    assert refused({"buckets": {"min_side": 4000}}).problems == [
        ("bucket min_side = 4000 is above max_side = 2048: no side fits; swap them", True)
    ]
    assert (
        len(refused({"buckets": {"min_side": "x", "max_side": 64}}).problems) == 1
    )  # the default is not blamed
    assert "correct it in buckets.extra" in str(refused({"buckets": {"extra": [[1, 2]]}}))


def test_a_stage_that_cannot_be_built_hides_no_other_setting() -> None:
    said = wrong({"stages": [{"from_step": -1}, {"folder": "x"}], "lora": {"rank": 4}})
    assert [line.split(" ")[0] for line in said] == [
        "stages[0].from_step",
        "stages[1].from_step",
        "lora.rank",
    ]


def test_a_refusal_survives_its_way_to_other_processes() -> None:
    error = refused({"train": {"steps": "x", "seed": -1}})
    there = pickle.loads(pickle.dumps(error))
    assert (type(there), str(there), there.problems) == (WrongSettings, str(error), error.problems)


@pytest.mark.parametrize(
    ("section", "key", "meant"),
    [
        ("optimizer", "lr", "optimizer.learning_rate"),
        ("train", "lr", "optimizer.learning_rate"),
        ("optimizer", "wd", "optimizer.weight_decay"),
        ("train", "bs", "train.batch_size"),
        ("train", "lerning_rate", "optimizer.learning_rate"),
        ("optimizer", "weight_dcay", "optimizer.weight_decay"),
    ],
)
def test_short_names_and_slips_name_what_was_meant(section: str, key: str, meant: str) -> None:
    assert (
        str(refused({section: {key: 1}}).problems[0].text)
        == f"unknown key {section}.{key}; did you mean {meant}?"
    )


def test_a_key_that_is_like_none_hides_nothing() -> None:
    error = refused({"data": {"xyzzy": 1}})
    assert error.problems[0].text.startswith("unknown key data.xyzzy; did you mean data.")
    assert error.open_names == []


def refused(table: dict[str, Any]) -> WrongSettings:
    with pytest.raises(WrongSettings) as error:
        from_table(Config, table, "a.toml")
    return error.value


def test_the_closest_settings_have_defaults_for_what_is_wrong() -> None:
    table = {
        "train": {"steps": "x", "seed": 3, "batch_size": 0},
        "data": {"foldr": "x"},
        "lora": 3,
    }
    error = refused(table)
    assert error.closest.train == dataclasses.replace(from_table(Config, {}, "x").train, seed=3)
    assert error.closest.lora == from_table(Config, {}, "x").lora
    assert error.open_names == ["data.folder", "train.steps", "train.batch_size", "lora"]
    with pytest.raises(WrongSettings) as lacking:
        from_table(Outer, {"flag": 1}, "a.toml")  # without what has no default
    assert lacking.value.closest is None


def test_sections_that_do_not_fit_are_listed_with_the_rest() -> None:
    said = wrong({"sample": {"width": 13, "height": 11}, "lora": {"rank": 4}, "train": {"stepz": 3}})
    assert [line.split(" ")[0] for line in said] == ["unknown", "sample.width", "sample.height", "lora.rank"]
    hidden = wrong(
        {"sample": {"width": 13, "height": 11}, "vae": {"channel": 3}, "lora": {"rank": 4, "rnk": 2}}
    )
    assert "lora.rank trains a small part" in hidden[-1]  # which was given, whatever rnk was meant as


def test_what_else_is_wrong_joins_the_list_but_for_unknown_settings() -> None:
    error = refused({"train": {"steps": "x"}, "data": {"foldr": "x"}})
    more = error.with_more(["data.folder is empty", "latents.weights x does not exist"])
    assert str(more).splitlines() == [
        "a.toml: 3 settings are wrong",
        "  unknown key data.foldr; did you mean data.folder?",
        "  train.steps must be int, not 'x'",
        "  latents.weights x does not exist",
    ]
    assert str(error.with_more([])) == str(error)
    given = refused({"data": {"foldr": "x", "folder": "y"}})
    assert len(given.with_more(["data.folder y: there is no such folder"]).problems) == 2


WRONG = st.none() | st.integers(-2, 3) | st.booleans() | st.sampled_from(["", "x", "bf16", "hybrid", "full"])
SECTIONS = {
    name: st.dictionaries(
        st.sampled_from([*(entry.name for entry in dataclasses.fields(kind)), "stpes"]), WRONG, max_size=4
    )
    for name, kind in typing.get_type_hints(Config).items()
    if dataclasses.is_dataclass(kind)
}


@given(st.fixed_dictionaries({}, optional=SECTIONS))
def test_what_is_wrong_with_paths_can_be_said_of_any_refused_settings(table: dict[str, Any]) -> None:
    refusal = None
    try:
        from_table(Config, table, "a.toml")
    except WrongSettings as error:
        refusal = error
    if refusal is not None:
        assert refusal.closest is not None
        more = refusal.with_more(problems_here(refusal.closest))
        assert more.problems[: len(refusal.problems)] == refusal.problems
