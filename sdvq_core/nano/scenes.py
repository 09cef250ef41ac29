"""Scenes: one or two objects on a coloured ground, as a record, a caption and a picture.

The unit of size and place is the cell, 1/16 of the picture: one latent pixel, so that an object at another place
has the same latent, moved. What the caption leaves open (place, exact size, mirroring) is the seed's to choose.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdvq_core.nano.sprites import Sprites
from sdvq_core.nano.vocabulary import COLOUR_NAMES, COLOURS, NanoObject, allowed_colours

CELLS = 16
CELLS_OF_ONE = {"small": (7,), "": (10, 12), "big": (15,)}
CELLS_OF_TWO = {"small": (6,), "": (8,)}
PAIR_SHARE = 0.12
MIRRORED_SHARE = 0.5
SIZED_SHARE = 0.25
UNSAID_GROUND_SHARE = 0.06


@dataclass(frozen=True)
class Thing:
    """One placed object; `cells` is its longer side, `column` and `row` its top left corner."""

    item: int
    adjective: str
    cells: int
    column: int
    row: int
    mirrored: bool


@dataclass(frozen=True)
class Scene:
    """One thing, or two of which the first stands `left of`, `right of` or beside (`and`) the second."""

    things: tuple[Thing, ...]
    colour: str
    relation: str = ""


def sample_scene(rng: random.Random, objects: Sequence[NanoObject], *, pair_share: float = PAIR_SHARE) -> Scene:
    """A scene that training may use: no held-out combination in it."""
    pair = rng.random() < pair_share
    while True:
        items = rng.sample(range(len(objects)), 2 if pair else 1)
        colours = allowed_colours([objects[i].name for i in items], held_out=False)
        if colours:
            return place(rng, items, rng.choice(colours))


def place(rng: random.Random, items: Sequence[int], colour: str, adjectives: Sequence[str] | None = None) -> Scene:
    """The named objects at sizes and places that the generator chooses."""
    if len(items) == 1:
        words = adjectives or [rng.choice(("small", "big")) if rng.random() < SIZED_SHARE else ""]
        return Scene((_thing(rng, items[0], words[0], (0, CELLS), CELLS_OF_ONE),), colour)
    words = adjectives or ["small" if rng.random() < SIZED_SHARE / 2 else "" for _ in items]
    relation = rng.choice(("left of", "right of", "and"))
    halves = [(0, CELLS // 2), (CELLS // 2, CELLS)]
    if relation == "right of" or (relation == "and" and rng.random() < 0.5):
        halves.reverse()
    things = [_thing(rng, i, w, half, CELLS_OF_TWO) for i, w, half in zip(items, words, halves, strict=True)]
    return Scene(tuple(things), colour, relation)


def _thing(
    rng: random.Random, item: int, adjective: str, columns: tuple[int, int], sizes: Mapping[str, tuple[int, ...]]
) -> Thing:
    cells = rng.choice(sizes[adjective])
    column, row = rng.randint(columns[0], columns[1] - cells), rng.randint(0, CELLS - cells)
    return Thing(item, adjective, cells, column, row, rng.random() < MIRRORED_SHARE)


def caption(scene: Scene, objects: Sequence[NanoObject], rng: random.Random | None = None) -> str:
    """What the scene shows; without a generator the plainest wording."""
    phrases = [_phrase(thing, objects[thing.item], rng) for thing in scene.things]
    text = f" {scene.relation} ".join(phrases)
    if rng is not None and rng.random() < UNSAID_GROUND_SHARE:
        return text
    return f"{text} on {_article(scene.colour)} {scene.colour} background"


def _phrase(thing: Thing, known: NanoObject, rng: random.Random | None) -> str:
    name = known.name if rng is None or rng.random() < 0.7 else rng.choice(known.names)
    words = f"{thing.adjective} {name}".strip()
    return f"{_article(words)} {words}"


def _article(words: str) -> str:
    return "an" if words[0].lower() in "aeiou" and not words.startswith(("uni", "ufo")) else "a"


def render(scene: Scene, sprites: Sprites) -> NDArray[np.uint8]:
    """The picture [H, W, 3]: alpha composites on the flat ground."""
    size = sprites.resolution
    cell = size // CELLS
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = COLOURS[scene.colour]
    for thing in scene.things:
        colour, alpha = sprites.get(thing.item, thing.cells * cell, mirrored=thing.mirrored)
        y, x, side = thing.row * cell, thing.column * cell, thing.cells * cell
        window = picture[y : y + side, x : x + side]
        window += alpha * (colour - window)
    pixels: NDArray[np.uint8] = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    return pixels


def heldout_scenes(objects: Sequence[NanoObject], count: int = 256, pairs: int = 26, seed: int = 0) -> list[Scene]:
    """The evaluation: `count` scenes of held-out combinations, the last `pairs` with two objects."""
    rng = random.Random(f"heldout {seed}")
    items = list(range(len(objects)))
    singles = [(i, c) for i in items for c in allowed_colours([objects[i].name], held_out=True)]
    chosen = rng.sample(singles, min(len(singles), count - pairs))
    scenes = [place(rng, [i], c) for i, c in sorted(chosen)]
    while len(scenes) < count:
        two = rng.sample(items, 2)
        colours = allowed_colours([objects[i].name for i in two], held_out=True)
        if colours:
            scenes.append(place(rng, two, rng.choice(colours)))
    return scenes


def colour_index(scene: Scene) -> int:
    """The position of the ground's colour among the twelve."""
    return COLOUR_NAMES.index(scene.colour)
