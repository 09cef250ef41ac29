"""Words with bits in between, and recipes that allocate: what they mean and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sdvq_core.arms import parse_arm
from sdvq_core.errors import ConfigError
from sdvq_core.quantizers import parse
from sdvq_core.recipes import find_recipe
from sdvq_core.targets import parse_target


@pytest.mark.parametrize(
    ("word", "widths"),
    [
        ("aq:bits=2.6", (2, 2.5, 3, 3.5)),
        ("tcq:bits=1.2", (1, 2, 3, 4)),
        ("rtn:bits=3.5,group_size=32", (2, 3, 4, 5)),
    ],
)
def test_bits_between_two_widths_are_a_target_among_the_nearest(word: str, widths: tuple[float, ...]) -> None:
    target = parse_target(word)
    assert target is not None
    assert tuple(one.nominal_bits for one in target.among) == widths
    assert f"bits={target.bits:g}" in word


def test_other_settings_hold_for_all_candidates() -> None:
    target = parse_target("rtn:bits=3.5,group_size=32")
    assert target is not None
    assert {one.to_spec()["group_size"] for one in target.among} == {32}


@pytest.mark.parametrize("word", ["aq", "aq:bits=3", "rvq:bits=2.5", "nf4", "tcq:bits=4", "rtn:group_size=32"])
def test_a_width_of_the_quantizer_is_no_target(word: str) -> None:
    assert parse_target(word) is None
    assert parse_arm(word).rules


@pytest.mark.parametrize(
    "word", ["tcq:bits=0.7", "tcq:bits=4.5", "nf4:bits=3.5", "rtn:bits=nan", "tcq:bits=2.6,beam=3"]
)
def test_what_cannot_be_reached_is_refused_in_a_sentence(word: str) -> None:
    with pytest.raises(ConfigError, match=r"must be|has no knob"):
        parse_arm(word)


def recipe(folder: Path, **data: object) -> Path:
    (folder / "recipes").mkdir()
    (folder / "recipes" / "mine.yaml").write_text(yaml.safe_dump(data))
    return folder


def test_a_recipe_that_allocates_has_a_target(tmp_path: Path) -> None:
    found = find_recipe("mine", recipe(tmp_path, allocate={"among": ["tcq:bits=2", "tcq"], "bits": 2.5}))
    assert found.target is not None
    assert found.target.among == (parse("tcq:bits=2"), parse("tcq"))
    assert (found.target.bits, found.rules) == (2.5, ())


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"rules": [{"pattern": "*", "quantizer": "rtn"}], "allocate": {"among": ["rtn", "nf4"], "bits": 3}},
        {"allocate": {"among": ["rtn", "nf4"]}},
        {"allocate": {"among": "rtn", "bits": 3}},
        {"allocate": {"among": ["rtn", "nf4"], "bits": "many"}},
        {"allocate": {"among": ["rtn", "rtn"], "bits": 3}},
        {"allocate": {"among": ["rtn", "nf4"], "bits": 3}, "allocated": [1]},
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(tmp_path: Path, data: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"rules|allocate|two quantizers"):
        find_recipe("mine", recipe(tmp_path, **data))
