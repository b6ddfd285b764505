from __future__ import annotations

from enum import Enum
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from inlay.errors import InputError
from inlay.methods.registry import all_methods
from inlay.settings import MAX_PICTURES, knobs, parse_sets, validate_settings


class Sky(Enum):
    day = "day"
    night = "night"


class Knobs(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    T_in: float = Field(0.5, ge=0, le=1, description="share")
    steps: int = Field(25, ge=1, le=1000)
    rate: float = Field(1.0, gt=0)
    limit: float | None = Field(None, gt=0)
    mode: Literal["soft", "hard"] = "soft"
    sky: Sky = Sky.day
    bright: bool = False
    prompt: str = Field("", max_length=20)
    name: str = Field("Aa", pattern="^[A-Z][a-z]+$")
    widths: tuple[int, ...] = (1, 2)

    @model_validator(mode="after")
    def _agree(self) -> Knobs:
        if self.bright and self.sky is Sky.night:
            raise ValueError("a night sky cannot be bright; leave one of them out")
        return self


def test_sweep_multiplies_and_labels_only_what_varies() -> None:
    variants = parse_sets(["T_in=0,.25,1", "steps=2", "mode=soft,hard"], Knobs)
    assert [label for label, _ in variants] == [
        "T_in=0,mode=soft",
        "T_in=0,mode=hard",
        "T_in=0.25,mode=soft",
        "T_in=0.25,mode=hard",
        "T_in=1,mode=soft",
        "T_in=1,mode=hard",
    ]
    assert variants[3][1] == {"T_in": 0.25, "steps": 2, "mode": "hard"}


def test_no_sets_is_one_unlabelled_variant() -> None:
    assert parse_sets([], Knobs) == [("", {})]


def test_text_is_taken_whole_and_may_hold_commas_and_equals_signs() -> None:
    assert parse_sets(["prompt=a cat, e = mc2"], Knobs) == [("", {"prompt": "a cat, e = mc2"})]
    assert parse_sets(["prompt="], Knobs) == [("", {"prompt": ""})]


def test_booleans_enums_none_and_lists() -> None:
    assert [v["bright"] for _, v in parse_sets(["bright=no,TRUE"], Knobs)] == [False, True]
    assert [label for label, _ in parse_sets(["sky=day,night"], Knobs)] == ["sky=day", "sky=night"]
    assert parse_sets(["limit=none,2"], Knobs)[0] == ("limit=none", {"limit": None})
    assert parse_sets(["widths=3,4,5"], Knobs) == [("", {"widths": [3, 4, 5]})]


def test_equal_values_make_one_picture() -> None:
    assert parse_sets(["T_in=1,1.0,1e0"], Knobs) == [("", {"T_in": 1})]


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        (["T_im=1"], "setting 'T_im' is unknown; did you mean T_in?"),
        (["t_in=1"], "setting 't_in' is unknown; did you mean T_in?"),
        (["T_in"], "--set 'T_in' is not a setting; expected KEY=VALUE."),
        (["=3"], "--set '=3' is not a setting; expected KEY=VALUE."),
        (["T_in=1.5"], "T_in is 1.5; expected a finite number from 0 to 1."),
        (["T_in=0,2"], "T_in is 2; expected a finite number from 0 to 1."),
        (["T_in=nan"], "T_in is nan; expected a finite number from 0 to 1."),
        (["rate=inf"], "rate is inf; expected a finite number above 0."),
        (["limit=0"], "limit is 0; expected a finite number above 0, or none."),
        (["steps=2.5"], "steps is 2.5; expected a whole number from 1 to 1000."),
        (["steps=many"], "steps is 'many'; expected a whole number from 1 to 1000."),
        (["mode=sof"], "mode is 'sof'; expected one of soft, hard."),
        (["sky=dusk"], "sky is 'dusk'; expected one of day, night."),
        (["bright=maybe"], "bright is 'maybe'; expected true or false."),
        (["widths=a"], "widths is ['a']; expected a comma list."),
        (
            ["prompt=" + "x" * 21],
            f"prompt is '{'x' * 21}'; expected text of at most 20 characters.",
        ),
        (["name=cat"], "name is 'cat'; expected text matching ^[A-Z][a-z]+$."),
        (["T_in=0,,1"], "the list for T_in is '0,,1'; an item is missing between the commas."),
        (["T_in=0", "T_in=1"], "setting T_in is given twice"),
        (["bright=true", "sky=night"], "a night sky cannot be bright; leave one of them out."),
    ],
)
def test_wrong_sets_give_one_sentence(items: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_sets(items, Knobs)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sweep_is_bounded_before_it_is_expanded() -> None:
    many = ",".join(str(i) for i in range(1, 1000))
    with pytest.raises(InputError, match=f"{999 * 999} pictures.*at most {MAX_PICTURES}"):
        parse_sets([f"steps={many}", f"rate={many}"], Knobs)
    assert len(parse_sets(["steps=" + ",".join(map(str, range(1, 65)))], Knobs)) == MAX_PICTURES


def test_base_takes_part_in_the_check_but_not_in_the_result() -> None:
    assert parse_sets(["bright=true"], Knobs, {"steps": 3}) == [("", {"bright": True})]
    with pytest.raises(InputError, match="night sky"):
        parse_sets(["bright=true"], Knobs, {"sky": "night"})


def test_validate_settings_returns_an_instance() -> None:
    assert validate_settings(Knobs, {"T_in": 1, "mode": "hard"}).T_in == 1.0
    with pytest.raises(InputError, match=r"T_in is None; expected a finite number from 0 to 1\."):
        validate_settings(Knobs, {"T_in": None})


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_parses_or_is_refused_in_one_sentence(key: str, value: str) -> None:
    for item in (f"{key}={value}", f"T_in={value}", f"widths={value}", value):
        try:
            for _, values in parse_sets([item], Knobs):
                validate_settings(Knobs, values)
        except InputError as error:
            assert str(error).endswith((".", "?"))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8, unique=True))
def test_floats_survive_the_round_trip_and_labels_are_distinct(values: list[float]) -> None:
    variants = parse_sets(["T_in=" + ",".join(map(repr, values))], Knobs)
    assert [v["T_in"] for _, v in variants] == values
    assert len({label for label, _ in variants}) == len(values)


@pytest.mark.parametrize("name", sorted(all_methods()))
def test_every_method_describes_every_setting(name: str) -> None:
    method = all_methods()[name]
    for knob in knobs(method.settings).values():
        assert knob.description, f"{name}.{knob.name} has no description"
        assert knob.type != "other"
        assert knob.bounds or knob.type == "list", f"{name}.{knob.name} has no bounds"
    for preset in method.presets.values():
        validate_settings(method.settings, preset)
