"""The words of nano: objects, background colours, and which combinations no training batch may contain.

A combination (object, colour) is held out when sha256("name/colour") mod 100 < 15: no state, no list to keep in step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HELDOUT_PERCENT = 15
CONCRETE_GROUPS = (0, 3, 4, 5, 6, 7)  # faces, animals and plants, food, travel, activities, objects
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (244, 140, 36),
    "yellow": (250, 218, 70),
    "green": (52, 158, 76),
    "turquoise": (72, 204, 194),
    "blue": (48, 98, 220),
    "purple": (128, 66, 180),
    "pink": (250, 158, 200),
    "brown": (122, 78, 48),
    "gray": (150, 152, 156),
    "black": (24, 24, 28),
    "white": (250, 250, 250),
}
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)


@dataclass(frozen=True)
class NanoObject:
    """One picture: its emojibase label, the name captions use first, and further names."""

    label: str
    name: str
    synonyms: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every name a caption may use, the usual one first."""
        return (self.name, *self.synonyms)


def is_held_out(name: str, colour: str) -> bool:
    """Whether this object must never be trained on this background."""
    digest = hashlib.sha256(f"{name}/{colour}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELDOUT_PERCENT


def allowed_colours(names: Sequence[str], *, held_out: bool) -> list[str]:
    """The colours on which *all* of the named objects are held out (or none of them is)."""
    return [c for c in COLOUR_NAMES if all(is_held_out(n, c) == held_out for n in names)]


def curated_objects(count: int | None = None) -> list[NanoObject]:
    """The first `count` lines of objects.txt."""
    lines = Path(__file__).with_name("objects.txt").read_text(encoding="utf-8").splitlines()
    found = [_parse(line) for line in lines if line and not line.startswith("#")]
    return found[:count]


def all_objects(emojibase: Path, count: int) -> list[NanoObject]:
    """`count` objects: the curated ones, then concrete emoji in the order of emojibase's `data.json`."""
    chosen = curated_objects(count)
    known = {o.label for o in chosen} | {n for o in chosen for n in o.names}
    extra = (o for o in _concrete(emojibase) if o.label not in known and o.name not in known)
    return [*chosen, *(o for _, o in zip(range(count - len(chosen)), extra, strict=False))]


def _parse(line: str) -> NanoObject:
    label, _, names = line.partition(" = ")
    first, *others = (n.strip() for n in names.split("|"))
    return NanoObject(label.strip(), first, tuple(others))


def _concrete(emojibase: Path) -> Iterator[NanoObject]:
    for entry in json.loads(emojibase.read_text(encoding="utf-8")):
        clock = "o’clock" in entry["label"] or entry["label"].endswith("-thirty")
        if entry.get("group") in CONCRETE_GROUPS and not clock and " moon" not in entry["label"]:
            yield NanoObject(entry["label"], entry["label"].replace("-", " ").replace("’", "").lower())
