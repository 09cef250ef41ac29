"""A recipe tuned for one model: within its bits, better than chance, refused on another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sdvq_core import presets
from sdvq_core.arms import parse_arm
from sdvq_core.engine import Engine
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import Progress
from sdvq_core.plan import vqdm_rules
from sdvq_core.quantizers import parse
from sdvq_core.tuning import tune

WORDS = ("rtn:bits=2", "rtn:bits=4", "rtn:bits=8")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts and few steps instead of 64 prompts."""
    monkeypatch.setattr(presets, "calibration_prompts", lambda tier: ["a red frog", "a blue frog"])


@pytest.fixture
def recipe(tiny_base: Any, quick: None, tmp_path: Path) -> dict[str, Any]:
    *events, found = tune(tiny_base, [parse(word) for word in WORDS], 4.6, None, tmp_path)
    assert {event.stage for event in events if isinstance(event, Progress)} == {"compress", "distil", "allocate"}
    return found


@pytest.fixture
def folder(recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    presets.write_recipe(tmp_path / "recipes" / "mine.yaml", recipe)
    monkeypatch.setattr("sdvq_core.arms.find_recipe", lambda name: presets.find_recipe(name, tmp_path))
    return tmp_path


def test_the_recipe_keeps_to_its_bits(tiny_pipeline_folder: Path, recipe: dict[str, Any], folder: Path) -> None:
    ledger = Engine(folder / "data", "cpu").ledger(str(tiny_pipeline_folder), parse_arm("@mine"))
    assert 3.5 < (ledger.bits_per_quantized_weight or 0) <= 4.6
    used = {rule["quantizer"] for rule in recipe["rules"]}
    assert len(used) >= 2
    assert used <= {str(parse(word)) for word in WORDS}
    assert yaml.safe_load((folder / "recipes" / "mine.yaml").read_text()) == recipe


def test_it_is_refused_on_another_model(tiny_pipeline_folder: Path, recipe: dict[str, Any], folder: Path) -> None:
    presets.write_recipe(folder / "recipes" / "mine.yaml", {**recipe, "base": "0" * 16})
    with pytest.raises(ConfigError, match="tuned for another model"):
        Engine(folder / "data", "cpu").ledger(str(tiny_pipeline_folder), parse_arm("@mine"))


def test_mistakes_are_said(tiny_base: Any, quick: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two quantizers or more"):
        list(tune(tiny_base, [parse("rtn")], 4, None, tmp_path))
    with pytest.raises(ConfigError, match="budget must be"):
        list(tune(tiny_base, [parse("rtn:bits=4"), parse("rtn:bits=8")], 2, None, tmp_path))


def test_a_plain_quantizer_fits_every_model() -> None:
    arm = parse_arm("rtn")
    assert arm.base == ""
    assert arm.rules == tuple(vqdm_rules(parse("rtn")))
