"""Vocabulary, captions and the combinations that no training batch may contain."""

from __future__ import annotations

import random

import pytest

from sdvq_core.nano.scenes import Scene, Thing, caption, heldout_scenes, sample_scene
from sdvq_core.nano.train_vae import crowded_scene
from sdvq_core.nano.vocabulary import COLOUR_NAMES, allowed_colours, curated_objects, is_held_out

OBJECTS = curated_objects(150)


def held_out_in(scene: Scene) -> bool:
    return any(is_held_out(OBJECTS[t.item].name, scene.colour) for t in scene.things)


def test_names_are_unique_and_enough() -> None:
    every = [name for o in curated_objects() for name in o.names]
    assert len(OBJECTS) == 150
    assert len(every) == len(set(every))
    assert len(COLOUR_NAMES) == 12


def test_about_fifteen_percent_are_held_out() -> None:
    share = sum(is_held_out(o.name, c) for o in OBJECTS for c in COLOUR_NAMES) / (12 * len(OBJECTS))
    assert 0.12 < share < 0.18
    assert all(allowed_colours([o.name], held_out=False) for o in OBJECTS)


@pytest.mark.parametrize("sample", [sample_scene, crowded_scene])
def test_training_never_sees_a_held_out_combination(sample: object) -> None:
    rng = random.Random(1)
    assert callable(sample)
    assert not any(held_out_in(sample(rng, OBJECTS)) for _ in range(5000))


def test_the_evaluation_is_held_out_and_always_the_same() -> None:
    scenes = heldout_scenes(OBJECTS)
    assert scenes == heldout_scenes(OBJECTS)
    assert len(scenes) == 256
    assert sum(len(s.things) == 2 for s in scenes) == 26
    for scene in scenes:
        assert all(is_held_out(OBJECTS[t.item].name, scene.colour) for t in scene.things)


def test_same_seed_same_scenes_and_captions() -> None:
    first, second = random.Random(7), random.Random(7)
    for _ in range(200):
        one, two = sample_scene(first, OBJECTS), sample_scene(second, OBJECTS)
        assert one == two
        assert caption(one, OBJECTS, first) == caption(two, OBJECTS, second)


def thing(name: str, adjective: str = "") -> Thing:
    item = next(i for i, o in enumerate(OBJECTS) if o.name == name)
    return Thing(item, adjective, 8, 0, 0, False)


@pytest.mark.parametrize(
    ("scene", "text"),
    [
        (Scene((thing("frog"),), "blue"), "a frog on a blue background"),
        (Scene((thing("owl", "small"),), "orange"), "a small owl on an orange background"),
        (Scene((thing("unicorn"),), "red"), "a unicorn on a red background"),
        (
            Scene((thing("apple", "small"), thing("dog")), "yellow", "left of"),
            "a small apple left of a dog on a yellow background",
        ),
    ],
)
def test_captions_read_like_english(scene: Scene, text: str) -> None:
    assert caption(scene, OBJECTS) == text
