"""Reads and validates presets/: recipes (which layer gets what) and prompts, one YAML file each.

A recipe is `label`, `summary`, and `rules`: a list of `pattern` and `quantizer` (a word such as "rvq:bits=3", a
mapping, or null for 16 bits); the last rule that matches a layer wins, after VQDM's choice of layers. With `distil`
(`updates`, `batch`, `lr` …) what is not a code learns from the original model afterwards. `base` is the fingerprint
of the one model that the rules were tuned for. With `sequential: true` the blocks are compressed one after the other,
each calibrated on what the compressed earlier ones make, for one pass over the calibration prompts per block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from sdvq_core.distillation import DistillationSettings
from sdvq_core.errors import ConfigError
from sdvq_core.plan import VQDM_KEEPS, Rule
from sdvq_core.quantizers import Quantizer, make, parse
from sdvq_core.store.images import write_bytes

_KEYS = ("label", "summary", "rules", "distil", "base", "sequential")
FOLDER = Path(__file__).resolve().parent.parent / "presets"


@dataclass(frozen=True)
class Recipe:
    """A named plan. `arm` is the word that selects it."""

    name: str
    label: str
    summary: str
    rules: tuple[Rule, ...]
    distil: DistillationSettings | None = None
    base: str = ""
    sequential: bool = False

    @property
    def arm(self) -> str:
        return f"@{self.name}"


def recipes(folder: Path = FOLDER) -> list[Recipe]:
    """Every recipe in `folder`/recipes, by name."""
    return [_recipe(path) for path in sorted((folder / "recipes").glob("*.yaml"))]


def find_recipe(name: str, folder: Path = FOLDER) -> Recipe:
    """The recipe called `name` (without the @)."""
    known = recipes(folder)
    for recipe in known:
        if recipe.name == name:
            return recipe
    raise ConfigError(f"unknown recipe @{name}; choose one of {', '.join(recipe.arm for recipe in known)}")


def write_recipe(path: Path, recipe: Mapping[str, Any]) -> None:
    """Write what a recipe's file holds."""
    write_bytes(path, yaml.safe_dump(dict(recipe), sort_keys=False, width=120).encode())


def prompts(tier: str, folder: Path = FOLDER) -> list[str]:
    """Suggested prompts for a tier of models, "nano" or "sdxl"."""
    return _prompts(folder / "prompts.yaml", tier)


def calibration_prompts(tier: str, folder: Path = FOLDER) -> list[str]:
    """Prompts to gather layer statistics on, for a tier; none of them is used to evaluate."""
    return _prompts(folder / "calibration.yaml", tier)


def _prompts(path: Path, tier: str) -> list[str]:
    found = _read(path).get(tier)
    if not isinstance(found, list) or not found or not all(isinstance(item, str) for item in found):
        raise ConfigError(f"{path.name} needs a list of prompts under {tier!r}")
    return found


def _recipe(path: Path) -> Recipe:
    data = _read(path)
    unknown = sorted(set(data) - set(_KEYS))
    if unknown:
        raise ConfigError(f"{path.name} has the unknown key {unknown[0]!r}; a recipe has {', '.join(_KEYS)}")
    sequential = data.get("sequential", False)
    if not isinstance(sequential, bool):
        raise ConfigError(f"{path.name}: sequential must be true or false, got {sequential!r}")
    rules = data.get("rules")
    if not isinstance(rules, list) or not rules:
        raise ConfigError(f"{path.name} needs a list of rules, each with pattern and quantizer")
    keeps = [Rule(pattern, None, optional=True) for pattern in VQDM_KEEPS]
    own = [_rule(item, path.name) for item in rules]
    first = [rule for rule in own if rule.pattern == "*"]
    rest = [rule for rule in own if rule.pattern != "*"]
    label, summary = str(data.get("label", path.stem)), str(data.get("summary", ""))
    distil = _distil(data.get("distil"), path.name)
    return Recipe(path.stem, label, summary, (*first, *keeps, *rest), distil, str(data.get("base", "")), sequential)


def _distil(value: Any, owner: str) -> DistillationSettings | None:
    if value is None:
        return None
    known = asdict(DistillationSettings())
    if not isinstance(value, Mapping) or set(value) - set(known):
        raise ConfigError(f"{owner}: distil takes {', '.join(known)}, got {value!r}")
    wrong = [name for name, number in value.items() if not isinstance(number, type(known[name]) | int)]
    if wrong:
        raise ConfigError(f"{owner}: distil.{wrong[0]} must be a number, got {value[wrong[0]]!r}")
    return DistillationSettings(**value)


def _rule(item: Any, owner: str) -> Rule:
    if not isinstance(item, Mapping) or set(item) - {"optional"} != {"pattern", "quantizer"}:
        raise ConfigError(f"{owner}: a rule has the keys pattern and quantizer (and optional), got {item!r}")
    return Rule(str(item["pattern"]), _quantizer(item["quantizer"]), bool(item.get("optional", False)))


def _quantizer(value: Any) -> Quantizer | None:
    if value is None:
        return None
    if not isinstance(value, str | Mapping):
        raise ConfigError(f"a quantizer is a word such as rvq:bits=3, a mapping or null, got {value!r}")
    return parse(value) if isinstance(value, str) else make(value)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path.name} cannot be read as YAML ({error})") from None
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path.name} must be a mapping of names to values")
    return data
