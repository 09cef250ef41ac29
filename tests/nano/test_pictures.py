"""Renders: what is where, in which colour, the same every time."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sdvq_core.nano.scenes import CELLS, Scene, Thing, place, render
from sdvq_core.nano.sprites import Sprites
from sdvq_core.nano.vocabulary import COLOURS


def half_disc() -> Image.Image:
    """A red picture whose left half is transparent, with a margin."""
    picture = Image.new("RGBA", (100, 100))
    ImageDraw.Draw(picture).rectangle((50, 20, 79, 79), fill=(255, 0, 0, 255))
    ImageDraw.Draw(picture).rectangle((20, 20, 49, 79), fill=(0, 0, 255, 255))
    return picture


@pytest.fixture(params=[64, 128])
def sprites(request: pytest.FixtureRequest) -> Sprites:
    return Sprites([half_disc()] * 2, request.param)


def test_object_lies_where_the_scene_says(sprites: Sprites) -> None:
    cell = sprites.resolution // CELLS
    picture = render(Scene((Thing(0, "", 8, 4, 2, False),), "green"), sprites)
    assert picture.shape == (sprites.resolution, sprites.resolution, 3)
    ground = np.array(COLOURS["green"])
    assert (picture[: 2 * cell] == ground).all()
    assert (picture[:, : 4 * cell] == ground).all()
    assert picture[6 * cell, 5 * cell].tolist() == [0, 0, 255]
    assert picture[6 * cell, 11 * cell].tolist() == [255, 0, 0]


def test_mirroring_swaps_the_sides(sprites: Sprites) -> None:
    plain = render(Scene((Thing(0, "", 16, 0, 0, False),), "white"), sprites)
    mirrored = render(Scene((Thing(0, "", 16, 0, 0, True),), "white"), sprites)
    assert np.array_equal(plain[:, ::-1], mirrored)
    assert not np.array_equal(plain, mirrored)


def test_alpha_is_blended() -> None:
    half = Image.new("RGBA", (64, 64), (200, 0, 0, 128))
    picture = render(Scene((Thing(0, "", 16, 0, 0, False),), "black"), Sprites([half], 64))
    red = 24 + (200 - 24) * 128 / 255
    assert abs(int(picture[32, 32, 0]) - red) <= 1


def test_same_seed_same_picture_and_other_seed_another(sprites: Sprites) -> None:
    def draw(seed: int) -> bytes:
        return render(place(random.Random(seed), [0], "blue"), sprites).tobytes()

    assert draw(3) == draw(3)
    assert len({draw(seed) for seed in range(20)}) > 10


def test_pairs_stand_side_by_side() -> None:
    rng = random.Random(0)
    for _ in range(200):
        scene = place(rng, [0, 1], "red")
        first, second = scene.things
        if scene.relation == "left of":
            assert first.column + first.cells <= second.column
        if scene.relation == "right of":
            assert second.column + second.cells <= first.column
