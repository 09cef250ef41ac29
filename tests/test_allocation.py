"""Bit allocation: the integer program against brute force, damages against one forward by hand."""

from __future__ import annotations

import copy
import itertools
import random
from functools import partial
from typing import Any

import pytest
import torch

from sdvq_core.allocation import allocate, measure_damage
from sdvq_core.calibration import Trajectory
from sdvq_core.diffusion.sampling import sample_batch
from sdvq_core.distillation import Lessons, guided_error, record_lessons
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import Progress, Sampling
from sdvq_core.quantizers import parse

NAMES = ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1")


@pytest.mark.parametrize("seed", range(6))
def test_the_assignment_is_the_best_of_all(seed: int) -> None:
    rng = random.Random(seed)
    nbytes = {f"l{i}": sorted(rng.randint(5, 40) for _ in range(3)) for i in range(6)}
    damage = {name: sorted((rng.random() * 1e-6 for _ in sizes), reverse=True) for name, sizes in nbytes.items()}
    budget = (sum(s[0] for s in nbytes.values()) + sum(s[2] for s in nbytes.values())) // 2
    names = list(nbytes)

    def cost(choice: tuple[int, ...]) -> float:
        return sum(damage[name][index] for name, index in zip(names, choice, strict=True))

    def size(choice: tuple[int, ...]) -> int:
        return sum(nbytes[name][index] for name, index in zip(names, choice, strict=True))

    best = min((c for c in itertools.product(range(3), repeat=6) if size(c) <= budget), key=cost)
    found = allocate(nbytes, damage, budget)
    chosen = tuple(found[name] for name in names)
    assert size(chosen) <= budget
    assert cost(chosen) <= cost(best) * (1 + 1e-3)


def test_more_bytes_never_cost_more_damage() -> None:
    nbytes = {"a": (2, 3, 4), "b": (20, 30, 40), "c": (7, 9, 11)}
    damage = {"a": (5.0, 2.0, 1.0), "b": (3.0, 1.0, 0.5), "c": (1.0, 0.5, 0.4)}
    sums = [sum(damage[n][i] for n, i in allocate(nbytes, damage, budget).items()) for budget in range(29, 56)]
    assert sums == sorted(sums, reverse=True)
    assert sums[-1] == pytest.approx(1.9)


def test_a_budget_below_what_is_possible_names_the_least() -> None:
    with pytest.raises(ConfigError, match="must be 12 or more"):
        allocate({"a": (5, 9), "b": (7, 8)}, {"a": (1.0, 0.5), "b": (1.0, 0.5)}, 11)
    with pytest.raises(ConfigError, match="damage of b"):
        allocate({"a": (5,), "b": (7,)}, {"a": (1.0,), "b": (float("nan"),)}, 20)


@pytest.fixture(scope="module")
def lessons(tiny_base: Any) -> Lessons:
    batch = [Sampling("a red frog", seed, 3, 3.0) for seed in range(2)]
    *_, found = record_lessons(
        tiny_base.unet, [Trajectory(partial(sample_batch, tiny_base, tiny_base.unet, batch), 3)], 2
    )
    return found


def test_damage_is_the_error_of_one_layer_alone(tiny_base: Any, lessons: Lessons) -> None:
    before = copy.deepcopy(tiny_base.unet.state_dict())
    words = ("rtn:bits=2", "rtn:bits=4", "rtn:bits=8")
    weights = {name: tiny_base.unet.get_submodule(name).weight for name in NAMES}
    candidates = {name: [parse(word).quantize(weight) for word in words] for name, weight in weights.items()}
    *progress, damage = measure_damage(tiny_base.unet, candidates, lessons, 3.0, pairs=6)
    assert [event.done for event in progress if isinstance(event, Progress)] == [1, 2]
    assert all(torch.equal(value, before[name]) for name, value in tiny_base.unet.state_dict().items())
    for name in NAMES:
        assert damage[name][0] > damage[name][1] > damage[name][2] >= 0
    model = copy.deepcopy(tiny_base.unet)
    model.get_submodule(NAMES[1]).weight.data.copy_(candidates[NAMES[1]][0].dequantize())
    arguments, wanted = lessons.batch(torch.arange(6) % 2, torch.arange(6) * 3 // 6)
    with torch.no_grad():
        answer = model(**arguments, return_dict=False)[0]
    assert float(guided_error(answer - wanted, 2, 3.0)) == pytest.approx(damage[NAMES[1]][0], rel=1e-4)


def test_damages_do_not_depend_on_how_many_pairs_go_at_once(
    tiny_base: Any, lessons: Lessons, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = tiny_base.unet.get_submodule(NAMES[0]).weight
    candidates = {NAMES[0]: [parse("rtn:bits=3").quantize(weight)]}
    *_, whole = measure_damage(tiny_base.unet, candidates, lessons, 3.0, pairs=5)
    monkeypatch.setattr("sdvq_core.allocation._ELEMENTS", 1)
    *_, single = measure_damage(tiny_base.unet, candidates, lessons, 3.0, pairs=5)
    assert single[NAMES[0]] == pytest.approx(whole[NAMES[0]], rel=2e-3)  # 5e-7 from two sums of fp32


def test_damages_are_measured_in_the_model_s_own_precision(tiny_base: Any, lessons: Lessons) -> None:
    model = copy.deepcopy(tiny_base.unet).bfloat16()
    candidates = {NAMES[0]: [parse("rtn:bits=2").quantize(model.get_submodule(NAMES[0]).weight)]}
    *_, damage = measure_damage(model, candidates, lessons, 3.0, pairs=2)
    assert damage[NAMES[0]][0] > 0
