"""Statistics by a crew against those of this process: the same files whoever sums a unit, and stopped runs go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_runs import BASE, Siblings, last, settings, sibling_inputs, trajectory

from sdvq_core.calibration import GroupStats, Here, Spread, collect, collect_sequential
from sdvq_core.calibration.spread import UnitTask
from sdvq_core.errors import LayerError, StoreError
from sdvq_core.jobs import Progress

NAMES = ("to_q", "to_k", "to_v", "out", "text_k", "text_v")
TEN = tuple(f"prompt {number}" for number in range(10))
CHOSEN = settings(prompts=TEN, batch=1, rows_per_forward=7, step_weights=(3.0, 0.1, 0.7))
WHOLE = 10**6
PASSES = 2 * 24 * 24 * 4  # bytes for one matrix, with what several units of work need


class Backwards:
    """One worker that begins with the last task; None comes before the work, and before every result."""

    per_node = 1

    def watch(self, work: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        yield None
        for found in [work(task) for task in [*tasks][::-1]][::-1]:
            yield None
            yield found


class Stopping(Backwards):
    """Is lost after so many units."""

    def __init__(self, most: int) -> None:
        self.most = most

    def watch(self, work: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        for number, task in enumerate(tasks):
            if isinstance(task, UnitTask) and number == self.most:
                raise KeyboardInterrupt
            yield work(task)


@pytest.fixture
def here() -> Here:
    torch.manual_seed(0)
    model = Siblings()
    return Here(model, [trajectory(model, sibling_inputs(3, 10 * number)) for number in range(10)])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def spread(here: Here, folder: Path, workers: Any = None) -> Spread:
    return Spread(workers or Backwards(), lambda: here, folder / "sums")


@pytest.mark.parametrize("budget", [WHOLE, PASSES], ids=["one pass", "several"])
def test_the_files_are_those_of_this_process(here, tmp_path, budget):
    last(collect(here, NAMES, CHOSEN, tmp_path / "alone", BASE, budget))
    *events, found = collect(spread(here, tmp_path), NAMES, CHOSEN, tmp_path / "spread", BASE, budget)
    assert set(found) == {*NAMES}
    assert files(tmp_path / "spread") == files(tmp_path / "alone")
    assert not (tmp_path / "sums").exists()
    shares = [event.done / event.total for event in events if isinstance(event, Progress)]
    assert shares == sorted(shares)
    assert (shares[0], events[0].seconds_left, shares[-1]) == (0, None, 1)


def test_group_after_group_as_well(here, tmp_path):
    groups = {"first": ["to_q", "out"], "second": ["text_k"]}
    for gatherer, name in ((here, "alone"), (spread(here, tmp_path), "spread")):
        events = list(collect_sequential(gatherer, groups, CHOSEN, tmp_path / name, BASE, WHOLE))
        assert [event.group for event in events if isinstance(event, GroupStats)] == [*groups]
    assert files(tmp_path / "spread") == files(tmp_path / "alone")


def test_the_budget_is_shared_by_those_who_share_a_machine(here, tmp_path):
    class Four(Backwards):
        per_node = 4

    one, four = (spread(here, tmp_path, workers()).survey(NAMES) for workers in (Backwards, Four))
    assert one.sources == four.sources == here.survey(NAMES).sources
    assert four.budget == pytest.approx(one.budget / 4, rel=0.2)


def test_units_that_are_there_are_not_summed_again(here, tmp_path):
    last(collect(here, NAMES, CHOSEN, tmp_path / "alone", BASE, WHOLE))
    with pytest.raises(KeyboardInterrupt):
        list(collect(spread(here, tmp_path, Stopping(3)), NAMES, CHOSEN, tmp_path / "spread", BASE, WHOLE))
    called = []
    here.model.register_forward_hook(lambda *_: called.append(1))
    last(collect(spread(here, tmp_path), NAMES, CHOSEN, tmp_path / "spread", BASE, WHOLE))
    assert len(called) == 1 + (10 - 3 * 2) * 3  # the look at the inputs, then what was left of 5 units of 2 batches
    assert files(tmp_path / "spread") == files(tmp_path / "alone")


@pytest.mark.parametrize(("share", "units"), [(0.8, 3), (0.5, 0)], ids=["a little less", "half"])
def test_a_run_that_goes_on_with_less_memory_finds_its_units(here, tmp_path, monkeypatch, share, units):
    free = 4 * PASSES
    monkeypatch.setattr("sdvq_core.calibration.passes.free_nbytes", lambda _: free)
    with pytest.raises(KeyboardInterrupt):
        list(collect(spread(here, tmp_path, Stopping(3)), NAMES, CHOSEN, tmp_path / "spread", BASE))
    free = int(share * free)
    called = []
    here.model.register_forward_hook(lambda *_: called.append(1))
    last(collect(spread(here, tmp_path), NAMES, CHOSEN, tmp_path / "spread", BASE))
    passes = {0.8: 1, 0.5: 2}[share]
    assert len(called) == 1 + 10 * 3 * passes - units * 2 * 3
    assert not (tmp_path / "sums").exists()  # those of the other passes neither


def test_a_worker_that_stops_within_a_unit_leaves_none_of_it(here, tmp_path):
    def stop(after: list[int], *_: object) -> None:
        after.append(1)
        if len(after) > 5:
            raise KeyboardInterrupt

    hook = here.model.register_forward_hook(partial(stop, []))
    with pytest.raises(KeyboardInterrupt):
        list(collect(spread(here, tmp_path), NAMES, CHOSEN, tmp_path / "spread", BASE, WHOLE))
    hook.remove()
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not any(layer._forward_pre_hooks for layer in here.model.modules())


def test_mistakes_are_said_as_ever(here, tmp_path):
    inputs = sibling_inputs()
    inputs[1][2] = torch.full_like(inputs[1][2], torch.nan)
    bad = Here(here.model, [*here.trajectories[:9], trajectory(here.model, inputs)])
    with pytest.raises(LayerError, match=r"layer text_k: .*NaN or infinite at step 2 of 3, timestep 899"):
        list(collect(spread(bad, tmp_path), NAMES, CHOSEN, tmp_path / "spread", BASE, WHOLE))
    silent = settings(prompts=TEN, batch=1, steps=4, step_weights=(0.0, 0.0, 0.0, 1.0))  # of which only three are made
    with pytest.raises(LayerError, match="saw no input at a step of weight above 0"):
        list(collect(spread(here, tmp_path), NAMES, silent, tmp_path / "silent", BASE, WHOLE))


def test_sums_that_are_damaged_are_named(here, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        list(collect(spread(here, tmp_path, Stopping(3)), NAMES, CHOSEN, tmp_path / "spread", BASE, WHOLE))
    next((tmp_path / "sums").rglob("*.safetensors")).write_bytes(b"hello")
    with pytest.raises(StoreError, match=r"safetensors is missing or damaged .*; remove it and calibrate again"):
        list(collect(spread(here, tmp_path), NAMES, CHOSEN, tmp_path / "spread", BASE, WHOLE))
