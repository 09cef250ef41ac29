"""A compression that was stopped goes on: the same bytes as an undisturbed run, per thread at most one layer twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from sdvq_core import presets
from sdvq_core.arms import Arm, parse_arm
from sdvq_core.distillation import DistillationSettings
from sdvq_core.engine import Engine
from sdvq_core.errors import ConfigError, SdvqError
from sdvq_core.integrations.loading import load_artifact
from sdvq_core.jobs import WAIT, Notice, Progress
from sdvq_core.metrics.weights import relative_mse
from sdvq_core.nn import QuantizedLayer
from sdvq_core.production import Means
from sdvq_core.store import Unfinished, read_artifact
from sdvq_core.workbench import Workbench

WEIGHTS = "diffusion_pytorch_model.safetensors"
QUICK = DistillationSettings(updates=6, batch=2, warm_up=1, look_every=2, lr=3e-3)


@pytest.fixture
def two_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "calibration_prompts", lambda tier: ["a red frog", "a blue frog"])


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the layers that were really computed."""
    names: list[str] = []
    room = import_module("sdvq_core.encoding")
    record = room.layer_record

    def noted(item: Any, *rest: Any) -> Any:
        names.append(item.name)
        return record(item, *rest)

    monkeypatch.setattr(room, "layer_record", noted)
    return names


def stop_at(engine: Engine, model: str, arm: Arm, place: int, text: str = "") -> None:
    """Stop at the `place`-th unit of the compression, or of the stage whose progress says `text`."""
    events: Iterator[Any] = engine.compress(model, arm)
    for event in events:
        wanted = isinstance(event, Progress) and (text in event.text if text else event.stage == "compress")
        if wanted and event.done == place:
            events.close()  # type: ignore[attr-defined]
            return
    raise AssertionError(f"never at {place}")


def run(engine: Engine, model: str, arm: Arm) -> tuple[bytes, list[Any]]:
    *events, folder = engine.compress(model, arm)
    return (folder / WEIGHTS).read_bytes(), events


@pytest.mark.parametrize("word", ["rvq:bits=2", "rtn", "aq:bits=2,rounds=1,sweeps=1"])
def test_layers_are_not_computed_twice(
    tiny_pipeline_folder: Path, two_prompts: None, computed: list[str], tmp_path: Path, word: str
) -> None:
    model, arm = str(tiny_pipeline_folder), parse_arm(word)
    wanted, _ = run(Engine(tmp_path / "whole", "cpu"), model, arm)
    total = len(computed)
    computed.clear()
    rng = random.Random(word)
    for place in sorted(rng.sample(range(1, total), 3)):
        stop_at(Engine(tmp_path / "stopped", "cpu"), model, arm, place)
    found, events = run(Engine(tmp_path / "stopped", "cpu"), model, arm)
    assert found == wanted
    assert len(computed) <= total + 3 * torch.get_num_threads()  # each stop loses what is in the making, no more
    assert any(isinstance(event, Notice) and "earlier run" in event.text for event in events)
    assert not list((tmp_path / "stopped" / "unfinished").iterdir())


def test_two_runs_at_once_compute_each_layer_once(
    tiny_pipeline_folder: Path, two_prompts: None, computed: list[str], tmp_path: Path
) -> None:
    model, arm = str(tiny_pipeline_folder), parse_arm("aq:bits=2,rounds=1,sweeps=1")
    first, second = (Engine(tmp_path, "cpu").compress(model, arm) for _ in range(2))
    assert any(isinstance(event, Progress) and event.stage == "compress" and event.done for event in first)
    waiting = next(event for event in second if isinstance(event, Progress) and event.stage == WAIT)
    assert waiting.text == f"another run is making {arm.word} of {model}"
    *_, made = first
    total = len(computed)
    *_, found = second
    assert found == made
    assert len(computed) == total == len(read_artifact(made).weights)


@pytest.mark.parametrize("place", [1, 2, 3, 5])
def test_distillation_goes_on_from_its_last_look(
    tiny_pipeline_folder: Path, two_prompts: None, tmp_path: Path, place: int
) -> None:
    model, arm = str(tiny_pipeline_folder), replace(parse_arm("rvq:codebooks=2,code_bits=4"), distil=QUICK)
    wanted, _ = run(Engine(tmp_path / "whole", "cpu"), model, arm)
    stop_at(Engine(tmp_path / "stopped", "cpu"), model, arm, place, "held-out")
    found, after = run(Engine(tmp_path / "stopped", "cpu"), model, arm)
    assert found == wanted
    assert updates(after) == list(range(place - place % 2 + 1, 7))


def updates(events: list[Any]) -> list[int]:
    return [e.done for e in events if isinstance(e, Progress) and e.stage == "distil" and "held-out" in e.text]


def test_finished_layers_of_another_codebook_set_are_made_again(
    tiny_pipeline_folder: Path, two_prompts: None, tmp_path: Path
) -> None:
    """As where a set is fitted anew on another machine: a file never mixes codes of one set with entries of another."""
    model, arm, engine = str(tiny_pipeline_folder), parse_arm("rvq:bits=2"), Engine(tmp_path, "cpu")
    stop_at(engine, model, arm, 4)
    (folder,) = (tmp_path / "unfinished").iterdir()
    kept = Unfinished(folder)
    names = [path.stem for path in folder.glob("*.safetensors")]
    shared = [name for name in names if (kept.layer(name) or ({}, {}))[0].meta["shared"]]
    assert len(shared) >= 2
    tensor, record = kept.layer(shared[0]) or pytest.fail("it was kept")
    other = {**tensor.tensors, "codebook": tensor.tensors["codebook"] * 2}
    kept.keep_layer(replace(tensor, tensors=other), record)
    *_, path = engine.compress(model, arm)
    artifact, original = read_artifact(path), engine.base(model).unet.state_dict()
    for line in artifact.records:
        decoded = artifact.weights[line.name].dequantize()
        found = relative_mse(original[f"{line.name}.weight"], decoded)
        tampered = line.name == shared[0]
        assert tampered or found == pytest.approx(line.relative_mse, rel=1e-3)


def test_what_is_finished_is_usable_and_says_what_is_missing(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    model, workbench = str(tiny_pipeline_folder), Workbench(tmp_path / "data", "cpu")
    arm, out = parse_arm("rtn"), tmp_path / "out"
    with pytest.raises(SdvqError, match=r"no layer of rtn is finished for .*; start its compression first"):
        workbench.partial(model, "rtn", out)
    stop_at(workbench.engine, model, arm, 5)
    report = workbench.partial(model, "rtn", out)
    total = len(workbench.engine.shelf.plan(model, arm).assignments)
    assert report.recipe == f"rtn, unfinished: {len(report.layers)} of {total} layers"
    assert 5 <= len(report.layers) < total
    missing = [item for item in report.ledger.fallbacks if item.reason == "not compressed yet"]
    assert len(missing) == total - len(report.layers)
    unet, original = load_artifact(out), workbench.engine.base(model).unet.state_dict()
    assert torch.equal(unet.get_submodule(missing[0].layer).weight, original[f"{missing[0].layer}.weight"])
    assert sum(isinstance(module, QuantizedLayer) for module in unet.modules()) == len(report.layers)
    assert (tmp_path / "data" / "unfinished").exists()  # it can still go on


def test_a_run_may_start_anew(tiny_pipeline_folder: Path, computed: list[str], tmp_path: Path) -> None:
    model, arm, engine = str(tiny_pipeline_folder), parse_arm("rtn"), Engine(tmp_path, "cpu")
    stop_at(engine, model, arm, 5)
    computed.clear()
    events = list(engine.compress(model, arm, resume=False))
    assert set(computed) >= {item.name for item in engine.shelf.plan(model, arm).assignments}
    assert not any(isinstance(event, Notice) for event in events)


def test_where_files_cannot_be_locked_another_process_may_be_the_first_to_finish(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    model, arm = str(tiny_pipeline_folder), parse_arm("rtn")
    (tmp_path / "turns").touch()
    events = Engine(tmp_path, "cpu").compress(model, arm)
    for event in events:
        if isinstance(event, Progress) and event.stage == "compress" and event.done == event.total:
            break
    *_, other = Engine(tmp_path, "cpu").compress(model, arm)  # removes what both have finished
    *_, found = events
    assert found == other


def test_a_data_free_arm_does_not_load_the_pipeline(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    model, engine = str(tiny_pipeline_folder), Engine(tmp_path, "cpu", means=Means(max_memory=10**8))
    run(engine, model, parse_arm("rvq:bits=2"))
    assert engine._base is None
    with pytest.raises(ConfigError, match=r"runs the model while it learns from it.* allow more, or name an arm"):
        list(Engine(tmp_path, "cpu", means=Means(max_memory=10**5)).compress(model, parse_arm("gptq:bits=3")))
