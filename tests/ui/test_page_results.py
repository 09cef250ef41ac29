"""The Results tab's handlers, called as plain functions on a fake workbench."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from fake_results import ARMS
from test_page_tabs import values

from sdvq_core.errors import ConfigError
from sdvq_core.jobs import MAX_ARMS
from sdvq_core.plots.rate_distortion import SIZES


@pytest.fixture
def form(compare: Any) -> Any:
    """What the Compare tab's form sends, with some fields changed."""
    return lambda **changes: values(compare, **changes)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every toast."""
    found: list[str] = []
    for name in ("Info", "Warning"):
        monkeypatch.setattr(gr, name, found.append)
    return found


def rows(table: str) -> list[list[str]]:
    return [
        [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr.*?</tr>", table)
    ]


def test_arms_by_size_chosen_ones_marked_and_floors_last(results: Any, form: Any) -> None:
    told, body, sizes, steps, table = results.fill("megabytes", *form())
    head, *arms = rows(table)
    assert body["visible"] is True
    assert [cells[0] for cells in arms] == [
        "★ rvq:bits=3", "tcq:bits=3", "★ rtn:bits=4", "nf4", "fp16", "another seed", "fp16 rounding of every layer",
    ]  # fmt: skip
    assert {len(cells) for cells in arms} == {len(head)}
    assert "CMMD" not in head, "nobody has it"
    assert arms[0][head.index("PSNR, dB")] == "17.2 (16.2–18.2)"
    stars = [trace.name for trace in sizes.data if "star" in trace.marker.symbol]
    assert stars == ["rtn", "rvq"]
    assert {trace.name for trace in steps.data} >= {"rtn:bits=4", "rvq:bits=3", "other arms"}
    assert "2 prompts × 1 seed, 20 steps, guidance 4" in told
    assert "came with SDVQ" in told
    assert "&#x27;a b&#x27;" in told


def test_chosen_arms_that_were_not_measured_are_named(results: Any, form: Any) -> None:
    told, *_ = results.fill("bits", *form(more="rtn:bits=2\n<b>"))
    assert "not measured" in told
    assert "<code>rtn:bits=2</code>, <code>&lt;b&gt;</code>" in told
    assert "not measured" not in results.fill("bits", *form())[0]


@pytest.mark.parametrize("size", SIZES)
def test_size_has_three_units(results: Any, form: Any, size: str) -> None:
    assert results.draw_sizes(size, *form()).layout.xaxis.title.text == SIZES[size][0]
    assert size in [value for _, value in results.parts["size"].choices]


def test_a_model_without_results_gets_the_command_for_its_arms(results: Any, form: Any) -> None:
    told, body, *figures = results.fill("bits", *form(model="sdxl-turbo"))
    assert "--arm fp16" in re.sub("<[^>]+>", "", told)
    assert "evaluate sdxl-turbo" in told
    assert body["visible"] is False
    assert figures == [None, None, ""]


def test_a_mistake_is_told_in_place(results: Any, form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: str) -> None:
        raise ConfigError(f"{model!r} names no model")

    monkeypatch.setattr(results.workbench, "results", refuse, raising=False)
    told, body, *_ = results.fill("bits", *form(model="<b>"))
    assert "names no model" in told
    assert "<b>" not in told
    assert body["visible"] is False


def test_a_click_puts_the_arm_beside_the_others(results: Any, form: Any, told: list[str]) -> None:
    more = results.pick(SimpleNamespace(_data={"name": "tcq:bits=3"}), *form(more="nf4\n"))
    assert more == "nf4\ntcq:bits=3"
    assert "tcq:bits=3 was added" in told[0]


@pytest.mark.parametrize(
    ("arm", "more", "says"),
    [
        ("rvq:bits=3", "", "already"),
        ("tcq:bits=3", "\n".join(f"rtn:bits=4,group_size={size}" for size in range(MAX_ARMS)), "at most"),
        ("<script>", "", None),
        (None, "", None),
    ],
)
def test_a_click_that_changes_nothing(results: Any, form: Any, told: list[str], arm: Any, more: str, says: Any) -> None:
    assert arm in ARMS or says is None
    assert results.pick(SimpleNamespace(_data={"name": arm}), *form(more=more)) == gr.skip()
    assert len(told) == (says is not None)
    assert says is None or says in told[0]
