"""Bits allocated for one model: within their target, better than uniform, measured once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdvq_core import presets
from sdvq_core.arms import parse_arm
from sdvq_core.distillation import DistillationSettings
from sdvq_core.engine import Engine
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import Progress
from sdvq_core.plan import vqdm_rules
from sdvq_core.quantizers import parse
from sdvq_core.recipes import find_recipe, write_recipe
from sdvq_core.targets import Target
from sdvq_core.tuning import known_damage, measure, tune
from sdvq_core.workbench import Workbench

TARGET = Target(tuple(parse(word) for word in ("rtn:bits=2", "rtn:bits=4", "rtn:bits=8")), 4.6)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts instead of 64, few pairs of image and step."""
    _quicken(monkeypatch)


def _quicken(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(presets, "calibration_prompts", lambda tier: ["a red frog", "a blue frog"])
    patch.setattr("sdvq_core.tuning._PAIRS", 3)


@pytest.fixture(scope="module")
def tuned(tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A tuned recipe, and the data folder with what was measured for it."""
    data = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        _quicken(patch)
        *events, found = tune(tiny_base, TARGET, DistillationSettings(updates=2), data)
    assert {event.stage for event in events if isinstance(event, Progress)} == {"compress", "distil", "allocate"}
    return found, data


@pytest.fixture
def recipe(tuned: tuple[dict[str, Any], Path], tmp_path: Path) -> dict[str, Any]:
    """The recipe; what was measured for it lies in the test's own folder."""
    shutil.copytree(tuned[1], tmp_path, dirs_exist_ok=True)
    return tuned[0]


@pytest.fixture
def folder(recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_recipe(tmp_path / "recipes" / "mine.yaml", recipe)
    monkeypatch.setattr("sdvq_core.arms.find_recipe", lambda name: find_recipe(name, tmp_path))
    return tmp_path


def test_the_recipe_keeps_to_its_bits(tiny_pipeline_folder: Path, recipe: dict[str, Any], folder: Path) -> None:
    engine, arm = Engine(folder / "elsewhere", "cpu"), parse_arm("@mine")
    rules = engine.shelf.rules(str(tiny_pipeline_folder), arm)
    assert rules, "a tuned recipe carries its solution"
    ledger = engine.ledger(str(tiny_pipeline_folder), arm)
    assert 3.5 < (ledger.bits_per_quantized_weight or 0) <= 4.6
    used = {rule.quantizer for rule in rules} - {None}
    assert len(used) >= 2
    assert used <= set(TARGET.among)
    assert arm.distil == DistillationSettings(updates=2)
    assert yaml.safe_load((folder / "recipes" / "mine.yaml").read_text()) == recipe


def test_another_model_is_measured_anew(tiny_pipeline_folder: Path, recipe: dict[str, Any], folder: Path) -> None:
    foreign = {"0" * 16: next(iter(recipe["allocated"].values()))}
    write_recipe(folder / "recipes" / "mine.yaml", {**recipe, "allocated": foreign})
    engine = Engine(folder / "elsewhere", "cpu")
    assert engine.shelf.rules(str(tiny_pipeline_folder), parse_arm("@mine")) is None
    assert Engine(folder, "cpu").shelf.rules(str(tiny_pipeline_folder), parse_arm("@mine")), (
        "its damages are kept there"
    )


def test_a_solution_counts_for_its_own_target(tiny_pipeline_folder: Path, recipe: dict[str, Any], folder: Path) -> None:
    """A recipe that was copied and given other bits is solved again."""
    changed = {**recipe, "allocate": {**recipe["allocate"], "bits": 6.0}}
    write_recipe(folder / "recipes" / "mine.yaml", changed)
    assert Engine(folder / "elsewhere", "cpu").shelf.rules(str(tiny_pipeline_folder), parse_arm("@mine")) is None


def test_damages_are_measured_once(tiny_base: Any, recipe: dict[str, Any], tmp_path: Path) -> None:
    assert list(measure(tiny_base, TARGET, tmp_path)) == []
    *events, other = tune(tiny_base, Target(TARGET.among, 6.0), None, tmp_path)
    assert events == []
    assert other["allocated"] != recipe["allocated"]


def test_a_damaged_file_is_measured_again(tiny_base: Any, recipe: dict[str, Any], tmp_path: Path) -> None:
    before = known_damage(tiny_base.source, tiny_base.fingerprint, TARGET, tmp_path)
    victim = sorted((tmp_path / "damages").glob("*.json"))[0]
    victim.write_text(victim.read_text()[:100])
    assert known_damage(tiny_base.source, tiny_base.fingerprint, TARGET, tmp_path) is None
    assert list(measure(tiny_base, TARGET, tmp_path))
    assert known_damage(tiny_base.source, tiny_base.fingerprint, TARGET, tmp_path) == before
    assert json.loads(victim.read_text())["damage"]


def test_allocated_bits_do_less_damage_than_uniform_ones(tiny_base: Any, recipe: Any, tmp_path: Path) -> None:
    """At the bytes of 4-bit everywhere the assignment may be that one, or better."""
    damage = known_damage(tiny_base.source, tiny_base.fingerprint, TARGET, tmp_path)
    assert damage is not None
    nbytes = Engine(tmp_path, "cpu").ledger(str(tiny_base.source.location), parse_arm("rtn:bits=4"))
    *_, found = tune(tiny_base, Target(TARGET.among, nbytes.bits_per_quantized_weight or 0), None, tmp_path)
    rules = next(iter(found["allocated"].values()))
    names = {str(one): index for index, one in enumerate(TARGET.among)}
    by_layer = dict.fromkeys(damage, names[rules[0]["quantizer"]])
    by_layer |= {rule["pattern"]: names[rule["quantizer"]] for rule in rules[1:]}
    assert sum(damage[name][index] for name, index in by_layer.items()) <= sum(d[1] for d in damage.values()) + 1e-9


def test_bits_in_between_are_allocated_when_they_are_compressed(tiny_pipeline_folder: Path, tmp_path: Path):
    bench = Workbench(tmp_path, "cpu")
    model = str(tiny_pipeline_folder)
    about = bench.estimate(model, "rtn:bits=4.75")
    assert not about.exact
    *events, report = bench.compress(model, "rtn:bits=4.75")
    assert {"compress", "allocate"} <= {event.stage for event in events if isinstance(event, Progress)}
    assert len({layer.quantizer for layer in report.layers}) >= 2
    exact = bench.estimate(model, "rtn:bits=4.75")
    assert exact.exact
    assert exact.ledger == report.ledger
    assert (report.ledger.bits_per_quantized_weight or 9) <= 4.75
    assert about.ledger.tensor_bytes == pytest.approx(report.ledger.tensor_bytes, rel=0.05)


def test_mistakes_are_said(tiny_base: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two quantizers or more"):
        Target((parse("rtn"),), 4)
    with pytest.raises(ConfigError, match="above 0"):
        Target(TARGET.among, float("nan"))
    with pytest.raises(ConfigError, match=r"the least is \d\.\d+ bits"):
        list(tune(tiny_base, Target((parse("rtn:bits=4"), parse("rtn:bits=8")), 2), None, tmp_path))


def test_a_plain_quantizer_has_rules_for_every_model() -> None:
    arm = parse_arm("rtn")
    assert arm.target is None
    assert arm.rules == tuple(vqdm_rules(parse("rtn")))
