"""ZeroGPU: what needs a GPU is decorated with the seconds of its job, and with nothing where no GPU is lent."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import gradio as gr
import pytest
from fake_workbench import FakeWorkbench
from loops import in_a_loop

from sdvq_core.ui import build
from sdvq_core.ui.compare_tab import CompareTab
from sdvq_core.ui.zero_gpu import LIMIT, on_gpu, within_limit


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., int]]:
    """Durations of what is decorated, by name of the handler; `spaces` as a ZeroGPU Space has it, less the GPU."""
    durations: dict[str, Callable[..., int]] = {}
    spaces = ModuleType("spaces")

    def lend(task: Any, duration: Callable[..., int]) -> Any:
        durations[task.__name__] = duration
        return task

    spaces.GPU = lend  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    return durations


def test_elsewhere_a_handler_stays_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)

    def handler() -> None: ...

    assert on_gpu(handler, lambda: 1.0) is handler
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "spaces", None)  # not installed
    assert on_gpu(handler, lambda: 1.0) is handler


def test_the_page_asks_for_a_gpu_where_it_computes_and_nowhere_else(lent: dict[str, Callable[..., int]]) -> None:
    in_a_loop(lambda: build(FakeWorkbench()))
    assert set(lent) == {"generate", "detail", "compare"}


def test_the_seconds_are_those_of_the_job(lent: dict[str, Callable[..., int]], compare: CompareTab) -> None:
    in_a_loop(lambda: build(FakeWorkbench()))
    shown = compare.form.show(compare.start)[: len(compare.form.inputs)]
    assert lent["generate"](True, *shown) == 30  # three arms
    grid = compare.form.show(_grid(compare))[: len(compare.form.inputs)]
    assert lent["generate"](True, *grid) == 120  # of four seeds
    assert lent["compare"]("nano", "fp16,rtn:bits=4", "a frog", 0, 4, 4.0) == 20
    assert lent["compare"]("nano", "fp16", "a frog", -1, 4, 4.0) == 15  # refused, at once
    assert lent["detail"](None, "a", "b", None) == 30


def _grid(compare: CompareTab) -> Any:
    from dataclasses import replace

    return replace(compare.start, grid=True)


def test_a_generator_stays_one(lent: dict[str, Callable[..., int]]) -> None:
    def handler() -> Any:
        yield 1

    assert inspect.isgeneratorfunction(on_gpu(handler, lambda: 1.0))


@pytest.mark.parametrize(
    ("limit", "seconds", "asked"), [("", 7.2, 15), ("", 61.4, 61), ("", 1e9, 300), ("120", 1e9, 120), ("x", 1e9, 300)]
)
def test_the_limit_is_kept(limit: str, seconds: float, asked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, limit)
    assert within_limit(seconds) == asked


def test_compressing_live_is_a_box_that_is_off_where_artifacts_come_from_the_hub() -> None:
    class Space(FakeWorkbench):
        asks_first = True

    def draw(bench: FakeWorkbench) -> CompareTab:
        from sdvq_core.ui.compare_tab import draw_compare

        with gr.Blocks(analytics_enabled=False):
            return draw_compare(bench)

    space, other = in_a_loop(lambda: draw(Space())), in_a_loop(lambda: draw(FakeWorkbench()))
    assert (space.form.widgets["live"].visible, space.form.widgets["live"].value) == (True, False)
    assert (other.form.widgets["live"].visible, other.form.widgets["live"].value) == (False, True)
    off = space.form.show(space.start)[: len(space.form.inputs)]
    assert space.form.read(off).jobs[0].live is False
    assert "Tick “Compress what is not ready” below" in space.reprice(*off)
    on = list(off)
    on[space.form.inputs.index(space.form.widgets["live"])] = True
    assert space.form.read(on).jobs[0].live is True
    assert "Tick" not in space.reprice(*on)
    assert "live" not in space.form.read(on).to_query()
