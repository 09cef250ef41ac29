"""Arm words: what may stand in a column of a comparison, on the command line, in the page and in its URL.

`fp16` · a quantizer, `rtn:bits=4` · a recipe, `@preview` · the path of an artifact.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sdvq_core.distillation import DistillationSettings
from sdvq_core.errors import ConfigError
from sdvq_core.plan import Rule, vqdm_rules
from sdvq_core.presets import find_recipe, recipes
from sdvq_core.quantizers import catalogue, parse
from sdvq_core.store import is_artifact

REFERENCE = "fp16"


@dataclass(frozen=True)
class Arm:
    """A parsed word. rules: how to compress, empty for `fp16` and for an artifact that exists already.

    distil: how what is not a code learns from the original afterwards, if at all. base: fingerprint of the one model
    that the rules were tuned for, "" for any. sequential: block after block, each calibrated on what earlier ones make.
    """

    word: str
    label: str
    rules: tuple[Rule, ...] = ()
    artifact: Path | None = None
    distil: DistillationSettings | None = None
    base: str = ""
    sequential: bool = False


def parse_arm(word: str) -> Arm:
    """The arm that `word` names; ConfigError says what words there are."""
    word = word.strip()
    if word == REFERENCE:
        return Arm(word, "fp16 original")
    if word.startswith("@"):
        recipe = find_recipe(word[1:])
        return Arm(word, recipe.label, recipe.rules, None, recipe.distil, recipe.base, recipe.sequential)
    names = [info.name for info in catalogue()]
    if word.partition(":")[0].strip() in names:
        quantizer = parse(word)
        return Arm(word, f"{quantizer.name.upper()} {quantizer.nominal_bits:g}-bit", tuple(vqdm_rules(quantizer)))
    path = _path(word)
    if is_artifact(path):
        return Arm(word, path.name, artifact=path)
    if word and ("/" in word or os.path.isdir(path)):
        raise ConfigError(f"{word} is not an SDVQ artifact; pass a folder made by `python -m sdvq_core compress`")
    known = ", ".join(recipe.arm for recipe in recipes())
    raise ConfigError(
        f"unknown arm {word!r}; use fp16, a quantizer ({', '.join(names)}), a recipe ({known}) or an artifact folder"
    )


def _path(word: str) -> Path:
    try:
        return Path(word).expanduser()
    except RuntimeError:  # ~ of a user that does not exist
        return Path(word)
