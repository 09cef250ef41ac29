"""Reads and validates the recipes in presets/recipes, one YAML file each: which layer gets what.

A recipe is `label`, `summary`, and `rules`: a list of `pattern` and `quantizer` (a word such as "rvq:bits=3", a
mapping, or null for 16 bits); the last rule that matches a layer wins, after VQDM's choice of layers. With `distil`
(`updates`, `batch`, `lr` …) what is not a code learns from the original model afterwards. With `sequential: true` the
blocks are compressed one after the other, each calibrated on what the compressed earlier ones make.

Instead of rules a recipe may have `allocate`: quantizers to choose `among` and the most `bits` per quantized weight;
which layer gets which is then measured per model. `allocated` holds the rules so found, by model and target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sdvq_core.distillation import DistillationSettings
from sdvq_core.errors import ConfigError
from sdvq_core.plan import VQDM_KEEPS, Rule
from sdvq_core.presets import FOLDER, read_preset
from sdvq_core.quantizers import Quantizer, make, parse
from sdvq_core.store.images import write_bytes
from sdvq_core.targets import Target

_KEYS = ("label", "summary", "rules", "allocate", "allocated", "distil", "sequential")


@dataclass(frozen=True)
class Recipe:
    """A named plan: rules, or a target and the rules that solve it by model. `arm` is the word that selects it."""

    name: str
    label: str
    summary: str
    rules: tuple[Rule, ...]
    distil: DistillationSettings | None = None
    target: Target | None = None
    allocated: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
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


def _recipe(path: Path) -> Recipe:
    data = read_preset(path)
    unknown = sorted(set(data) - set(_KEYS))
    if unknown:
        raise ConfigError(f"{path.name} has the unknown key {unknown[0]!r}; a recipe has {', '.join(_KEYS)}")
    if ("rules" in data) == ("allocate" in data):
        raise ConfigError(f"{path.name} needs either rules, or allocate with the quantizers to choose among and bits")
    label, summary = str(data.get("label", path.stem)), str(data.get("summary", ""))
    distil = _distil(data.get("distil"), path.name)
    sequential = data.get("sequential", False)
    if not isinstance(sequential, bool):
        raise ConfigError(f"{path.name}: sequential must be true or false, got {sequential!r}")
    if "rules" in data:
        rules = _rules(data["rules"], path.name)
        return Recipe(path.stem, label, summary, rules, distil, sequential=sequential)
    target, known = _target(data["allocate"], path.name), data.get("allocated") or {}
    if not isinstance(known, Mapping):
        raise ConfigError(f"{path.name}: allocated holds lists of rules by fingerprint of the model, got {known!r}")
    allocated = {str(base): _rules(rules, path.name) for base, rules in known.items()}
    return Recipe(path.stem, label, summary, (), distil, target, allocated, sequential)


def _rules(items: Any, owner: str) -> tuple[Rule, ...]:
    """The recipe's own rules around VQDM's choice of layers: "*" before it, all others after it."""
    if not isinstance(items, list) or not items:
        raise ConfigError(f"{owner} needs a list of rules, each with pattern and quantizer")
    keeps = [Rule(pattern, None, optional=True) for pattern in VQDM_KEEPS]
    own = [_rule(item, owner) for item in items]
    first = [rule for rule in own if rule.pattern == "*"]
    rest = [rule for rule in own if rule.pattern != "*"]
    return (*first, *keeps, *rest)


def _target(value: Any, owner: str) -> Target:
    if not isinstance(value, Mapping) or set(value) != {"among", "bits"} or not isinstance(value["among"], list):
        raise ConfigError(f"{owner}: allocate takes among, a list of quantizers, and bits, a number; got {value!r}")
    bits = value["bits"]
    if isinstance(bits, bool) or not isinstance(bits, int | float):
        raise ConfigError(f"{owner}: allocate.bits must be a number, got {bits!r}")
    among = [_quantizer(item) for item in value["among"]]
    return Target(tuple(one for one in among if one is not None), float(bits))


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
