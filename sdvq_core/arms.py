"""Arm words: what may stand in a column of a comparison, on the command line, in the page and in its URL.

`fp16` · a quantizer, `rtn:bits=4` · a recipe, `@preview` · the path of an artifact.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdvq_core.errors import ConfigError
from sdvq_core.plan import Rule, vqdm_rules
from sdvq_core.presets import find_recipe, recipes
from sdvq_core.quantizers import catalogue, parse
from sdvq_core.store import is_artifact

REFERENCE = "fp16"


@dataclass(frozen=True)
class Arm:
    """A parsed word. rules: how to compress, empty for `fp16` and for an artifact that exists already."""

    word: str
    label: str
    rules: tuple[Rule, ...] = ()
    artifact: Path | None = None


def parse_arm(word: str) -> Arm:
    """The arm that `word` names; ConfigError says what words there are."""
    word = word.strip()
    if word == REFERENCE:
        return Arm(word, "fp16 original")
    if word.startswith("@"):
        recipe = find_recipe(word[1:])
        return Arm(word, recipe.label, recipe.rules)
    path = Path(word).expanduser()
    if is_artifact(path):
        return Arm(word, path.name, artifact=path)
    if "/" in word or path.is_dir():
        raise ConfigError(f"{word} is not an SDVQ artifact; pass a folder made by `python -m sdvq_core compress`")
    name = word.partition(":")[0]
    if name not in {info.name for info in catalogue()}:
        names = ", ".join(info.name for info in catalogue())
        known = ", ".join(recipe.arm for recipe in recipes())
        raise ConfigError(
            f"unknown arm {word!r}; use fp16, a quantizer ({names}), a recipe ({known}) or an artifact folder"
        )
    quantizer = parse(word)
    return Arm(word, f"{quantizer.name.upper()} {quantizer.nominal_bits:g}-bit", tuple(vqdm_rules(quantizer)))
