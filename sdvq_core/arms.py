"""Arm words: what may stand in a column of a comparison, on the command line, in the page and in its URL.

`fp16` · a quantizer, `rtn:bits=4` · one whose bits are allocated to layers, `aq:bits=2.6` · a recipe, `@preview` ·
another library, `lib.hqq:bits=4` · the path of an artifact.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sdvq_core.distillation import DistillationSettings
from sdvq_core.errors import ConfigError
from sdvq_core.peers import PREFIX, Peer
from sdvq_core.peers import parse as parse_peer
from sdvq_core.plan import Rule, vqdm_rules
from sdvq_core.quantizers import catalogue, parse
from sdvq_core.recipes import find_recipe, recipes
from sdvq_core.store import is_artifact
from sdvq_core.targets import Target, parse_target

REFERENCE = "fp16"


@dataclass(frozen=True)
class Arm:
    """A parsed word. rules: how to compress, empty for `fp16` and for an artifact that exists already.

    distil: how what is not a code learns from the original afterwards, if at all. target: bits that are allocated per
    model instead of rules; allocated: the rules where that is done already, by `solution_key`. peer: the
    library that quantizes, in memory, instead of our rules. sequential: block after block, each calibrated on what
    earlier ones make.
    """

    word: str
    label: str
    rules: tuple[Rule, ...] = ()
    artifact: Path | None = None
    distil: DistillationSettings | None = None
    target: Target | None = None
    allocated: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    peer: Peer | None = None
    sequential: bool = False

    @property
    def compresses(self) -> bool:
        """Whether there is an artifact to be made."""
        return bool(self.rules) or self.target is not None


def parse_arm(word: str) -> Arm:
    """The arm that `word` names; ConfigError says what words there are."""
    word = word.strip()
    if word == REFERENCE:
        return Arm(word, "fp16 original")
    if word.startswith("@"):
        recipe = find_recipe(word[1:])
        target, solved = recipe.target, recipe.allocated
        return Arm(word, recipe.label, recipe.rules, None, recipe.distil, target, solved, sequential=recipe.sequential)
    if word.startswith(PREFIX):
        peer = parse_peer(word)
        return Arm(word, peer.title, peer=peer)
    names = [info.name for info in catalogue()]
    if word.partition(":")[0].strip() in names:
        target = parse_target(word)
        if target is not None:
            name = target.among[0].name.upper()
            return Arm(word, f"{name}, {target.bits:g} bits allocated", target=target)
        quantizer = parse(word)
        return Arm(word, f"{quantizer.name.upper()} {quantizer.nominal_bits:g}-bit", tuple(vqdm_rules(quantizer)))
    path = _path(word)
    if is_artifact(path):
        return Arm(word, path.name, artifact=path)
    if word and ("/" in word or os.path.isdir(path)):
        raise ConfigError(f"{word} is not an SDVQ artifact; pass a folder made by `python -m sdvq_core compress`")
    known = ", ".join(recipe.arm for recipe in recipes())
    raise ConfigError(
        f"unknown arm {word!r}; use fp16, a quantizer ({', '.join(names)}), a recipe ({known}), "
        "another library (lib.hqq:bits=4) or an artifact folder"
    )


def _path(word: str) -> Path:
    try:
        return Path(word).expanduser()
    except RuntimeError:  # ~ of a user that does not exist
        return Path(word)
