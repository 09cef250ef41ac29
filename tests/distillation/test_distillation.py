"""Distillation on a tiny UNet: the student is the compressed model, codes never move, the best state is kept."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from orders import an_order

from sdvq_core.arms import parse_arm
from sdvq_core.calibration import Trajectory
from sdvq_core.compress import compress
from sdvq_core.diffusion.sampling import sample_batch
from sdvq_core.distillation import (
    DistillationSettings,
    Distilled,
    Lessons,
    Student,
    decoded_copy,
    distill,
    record_lessons,
)
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import Progress, Sampling
from sdvq_core.nn import swap_layer
from sdvq_core.plan import CompressionPlan, vqdm_rules
from sdvq_core.production import produce, recipe_digest
from sdvq_core.quantizers import parse
from sdvq_core.recipes import find_recipe
from sdvq_core.store import Artifact, read_artifact, read_report, write_artifact

WORD = "rvq:codebooks=2,code_bits=4,beam=2"
QUICK = DistillationSettings(updates=6, batch=4, lr=3e-3, warm_up=1, look_every=2)


def lessons_of(base: Any, guidance: float = 3.0) -> Lessons:
    batches = [[Sampling(p, seed, 3, guidance) for seed in (0, 1)] for p in ("a red frog", "a blue frog")]
    runs = [Trajectory(partial(sample_batch, base, base.unet, batch), 3) for batch in batches]
    found = [item for item in record_lessons(base.unet, runs, 2 if guidance > 1 else 1)]
    assert [item.done for item in found[:-1]] == [1, 2, 3, 4, 5, 6]
    assert isinstance(found[-1], Lessons)
    return found[-1]


def weights_of(base: Any, word: str = WORD) -> dict[str, Any]:
    plan = CompressionPlan.resolve(base.unet, tuple(vqdm_rules(parse(word))))
    return {result.record.name: result.tensor for result in compress(base.unet, plan)}


@pytest.fixture(scope="module")
def lessons(tiny_base: Any) -> Lessons:
    return lessons_of(tiny_base)


@pytest.fixture(scope="module")
def distilled(tiny_base: Any, lessons: Lessons) -> Distilled:
    *progress, found = distill(tiny_base.unet, weights_of(tiny_base), lessons, 3.0, QUICK)
    assert [event.done for event in progress if isinstance(event, Progress)] == [1, 2, 3, 4, 5, 6]
    assert isinstance(found, Distilled)
    return found


def test_lessons_are_what_the_teacher_did(tiny_base: Any, lessons: Lessons) -> None:
    assert lessons.latents.shape[:2] == (4, 3)
    assert lessons.outputs.shape[:3] == (4, 3, 2)
    arguments, wanted = lessons.batch(torch.tensor([3, 0]), torch.tensor([1, 2]))
    with torch.no_grad():
        answer = tiny_base.unet(**arguments, return_dict=False)[0]
    torch.testing.assert_close(answer, wanted, rtol=1e-4, atol=1e-5)


def test_lessons_without_guidance_have_one_half(tiny_base: Any) -> None:
    assert lessons_of(tiny_base, guidance=0.0).halves == 1


@pytest.mark.parametrize("word", [WORD, "rtn:bits=3", "tcq:bits=2", "nf4"])
def test_a_student_starts_as_the_compressed_model(tiny_base: Any, lessons: Lessons, word: str) -> None:
    import copy

    weights = weights_of(tiny_base, word)
    swapped = copy.deepcopy(tiny_base.unet)
    for name, weight in weights.items():
        swap_layer(swapped, name, weight)
    arguments, _ = lessons.batch(torch.tensor([0, 1]), torch.tensor([0, 2]))
    with torch.no_grad():
        one = swapped(**arguments, return_dict=False)[0]
        two = Student(tiny_base.unet, weights).model(**arguments, return_dict=False)[0]
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_codes_never_move_and_a_shared_codebook_stays_one(tiny_base: Any, distilled: Distilled) -> None:
    before = weights_of(tiny_base)
    moved = 0
    for name, weight in distilled.weights.items():
        assert torch.equal(weight.tensors["codes"], before[name].tensors["codes"])
        moved += int(not torch.equal(weight.tensors["scale"], before[name].tensors["scale"]))
    assert moved > 0
    shared = [w.tensors["codebook"] for w in distilled.weights.values() if w.meta["shared"]]
    assert all(torch.equal(shared[0], other) for other in shared)


def test_learning_lowers_the_error_on_held_out_images(distilled: Distilled) -> None:
    losses = [loss for _, loss in distilled.curve]
    assert [update for update, _ in distilled.curve] == [0, 2, 4, 6]
    assert min(losses) < 0.97 * losses[0]


def test_a_run_that_only_gets_worse_gives_the_start_back(tiny_base: Any, lessons: Lessons) -> None:
    before = weights_of(tiny_base)
    *_, worse = distill(tiny_base.unet, before, lessons, 3.0, replace(QUICK, lr=0.5))
    losses = [loss for _, loss in worse.curve]
    assert min(losses) == losses[0] < losses[-1]
    assert all(torch.equal(worse.weights[name].tensors["scale"], before[name].tensors["scale"]) for name in before)


def test_training_stops_when_nothing_gets_better(tiny_base: Any, lessons: Lessons) -> None:
    hopeless = replace(QUICK, updates=40, lr=0.5, patience=2)
    *_, found = distill(tiny_base.unet, weights_of(tiny_base), lessons, 3.0, hopeless)
    losses = [loss for _, loss in found.curve]
    assert len(losses) < 21
    assert losses.index(min(losses)) == len(losses) - 3


def test_lessons_may_follow_the_student(tiny_base: Any, lessons: Lessons) -> None:
    student = decoded_copy(tiny_base.unet, weights_of(tiny_base))
    runs = [
        Trajectory(partial(sample_batch, tiny_base, student, [Sampling("a red frog", s, 3, 3.0) for s in (0, 1)]), 3)
    ]
    *_, found = record_lessons(tiny_base.unet, runs, 2, student)
    assert torch.equal(found.latents[:, 0], lessons.latents[:2, 0]), "the noise is the same"
    assert not torch.allclose(found.latents[:, 2], lessons.latents[:2, 2]), "the way is not"
    arguments, wanted = found.batch(torch.tensor([1]), torch.tensor([2]))
    with torch.no_grad():
        torch.testing.assert_close(tiny_base.unet(**arguments, return_dict=False)[0], wanted, rtol=1e-4, atol=1e-5)
    both = lessons.split(2)[0].join(found)
    assert torch.equal(both.latents[0::2], lessons.latents[:2])
    assert torch.equal(both.outputs[1::2], found.outputs)


def test_the_original_is_left_alone(tiny_base: Any, distilled: Distilled) -> None:
    assert not any(parameter.requires_grad and parameter.grad is not None for parameter in tiny_base.unet.parameters())
    assert not any("parametrizations" in name for name in tiny_base.unet.state_dict())


def test_same_settings_same_numbers(tiny_base: Any, lessons: Lessons, distilled: Distilled) -> None:
    *_, again = distill(tiny_base.unet, weights_of(tiny_base), lessons, 3.0, QUICK)
    assert again.curve == distilled.curve


def test_an_arm_with_distillation_is_an_artifact_of_the_promised_size(tiny_base: Any, tmp_path: Path) -> None:
    arm = replace(parse_arm(WORD), distil=QUICK)
    plan = CompressionPlan.resolve(tiny_base.unet, arm.rules)
    *_, artifact = produce(an_order(tiny_base, plan, arm, tmp_path / "data"))
    assert isinstance(artifact, Artifact)
    write_artifact(tmp_path / "out", artifact)
    plain = recipe_digest(tiny_base.source, "0", plan, parse_arm(WORD))
    assert recipe_digest(tiny_base.source, "0", plan, arm) != plain
    again = read_artifact(tmp_path / "out")
    losses = [loss for _, loss in again.curve]
    assert [update for update, _ in again.curve] == [0, 2, 4, 6]
    assert min(losses) < losses[0]
    assert read_report(tmp_path / "out").curve == again.curve
    assert set(again.kept) == set(plan.kept)
    bias = next(name for name in plan.kept if name.endswith(".bias"))
    assert read_report(tmp_path / "out").ledger.tensor_bytes == sum(
        part.numel() * part.element_size() for part in _stored(again)
    )
    assert again.kept[bias].dtype == torch.float16


def _stored(artifact: Artifact) -> list[torch.Tensor]:
    from sdvq_core.store.artifact import StoredTensors

    return list(StoredTensors(artifact.weights, artifact.kept).values())


def test_recipes_may_ask_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    rules = "rules: [{pattern: '*', quantizer: 'rtn'}]\n"
    (folder / "good.yaml").write_text(rules + "distil: {updates: 10, lr: 0.01}\n")
    found = find_recipe("good", tmp_path).distil
    assert found == DistillationSettings(updates=10, lr=0.01)
    for bad in (
        "distil: 5",
        "distil: {epochs: 3}",
        "distil: {updates: many}",
        "distil: {updates: 0}",
        "distil: {follow: me}",
    ):
        (folder / "good.yaml").write_text(rules + bad + "\n")
        with pytest.raises(ConfigError):
            find_recipe("good", tmp_path)


def test_nothing_to_learn_from_is_said(tiny_base: Any, lessons: Lessons) -> None:
    with pytest.raises(ConfigError, match="at least one trajectory"):
        list(record_lessons(tiny_base.unet, [], 2))
    one, _ = lessons.split(1)
    with pytest.raises(ConfigError, match="two images"):
        list(distill(tiny_base.unet, weights_of(tiny_base), one, 3.0, QUICK))
