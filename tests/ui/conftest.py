"""The page on a fake workbench, built once."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from loops import in_a_loop

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


@pytest.fixture(scope="session")
def bench() -> Any:
    from fake_workbench import FakeWorkbench

    return FakeWorkbench()


@pytest.fixture(scope="session")
def page(bench: Any) -> Any:
    from sdvq_core.ui import build

    return in_a_loop(lambda: build(bench))


@pytest.fixture(scope="session")
def compare(bench: Any) -> Any:
    """The Compare tab with its handlers."""
    from sdvq_core.ui.compare_tab import draw_compare

    return in_a_loop(lambda: _drawn(lambda: draw_compare(bench)))


@pytest.fixture(scope="session")
def layers(bench: Any) -> Any:
    """The Layers tab with its handlers."""
    import gradio as gr

    from sdvq_core.ui.layers_tab import draw_layers

    return in_a_loop(lambda: _drawn(lambda: draw_layers(bench, gr.State(None))))


@pytest.fixture(scope="session")
def results(bench: Any) -> Any:
    """The Results tab with its handlers."""
    import gradio as gr

    from sdvq_core.ui.compare_tab import draw_compare
    from sdvq_core.ui.results_tab import draw_results

    def draw() -> Any:
        form = draw_compare(bench).form
        with gr.Tab("Results") as tab:
            return draw_results(bench, form, tab.select)

    return in_a_loop(lambda: _drawn(draw))


def _drawn(draw: Callable[[], Any]) -> Any:
    import gradio as gr

    with gr.Blocks(analytics_enabled=False):
        return draw()
