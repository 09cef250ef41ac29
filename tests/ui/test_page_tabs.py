"""The tabs' handlers, called as plain functions on a fake workbench."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from fake_workbench import FakeWorkbench

from sdvq_core.errors import ConfigError
from sdvq_core.jobs import Work
from sdvq_core.quantizers.base import catalogue, parse
from sdvq_core.ui import launch_options, wording
from sdvq_core.ui.bit_slider import read_bits, slider_value
from sdvq_core.ui.controls import FIELDS
from sdvq_core.ui.cost import cost_html, state
from sdvq_core.ui.guard import friendly
from sdvq_core.ui.settings import Settings
from sdvq_core.ui.sizes import sizes_html

LAST = ("nano", ("rtn:bits=4", "rvq:bits=3"))


def values(tab: Any, **changes: Any) -> list[Any]:
    """What the form sends, with some fields changed."""
    shown = tab.form.show(tab.start)[: len(tab.form.inputs)]
    return [changes.get(name, value) for name, value in zip(FIELDS, shown, strict=False)] + shown[len(FIELDS) :]


def test_public_endpoints_are_the_intended_ones(page: Any) -> None:
    endpoints = page.get_api_info()["named_endpoints"]
    assert sorted(endpoints) == ["/compare", "/estimate", "/quantizers"]


def test_every_input_is_interactive(compare: Any) -> None:
    for widget in compare.form.inputs:
        assert getattr(widget, "interactive", True) is not False, widget
    plain = [widget for widget in compare.form.inputs if not isinstance(widget, gr.HTML)]
    assert all(widget.interactive is True for widget in plain)


def test_nothing_is_sent_out_and_nothing_is_open() -> None:
    options = launch_options()
    assert (options["enable_monitoring"], options["run_history"], options["show_error"]) == (False, False, True)
    assert "http" not in options["head"].replace("http://www.w3.org", "")
    fonts = [*options["theme"]._font, *options["theme"]._font_mono]
    assert not any(isinstance(font, gr.themes.GoogleFont) for font in fonts)


def test_baselines_offer_the_libraries_that_are_installed(compare: Any) -> None:
    words = [word for _, word in compare.form.widgets["baseline"].choices]
    assert words == ["rtn:bits=4", "nf4", "", "lib.here:bits=4"]


def test_form_reads_back_what_it_shows(compare: Any) -> None:
    wanted = Settings(
        "nano", "a cat", 5, 7, 2.5, "nf4", "rvq:bits=2,beam=16", "@preview", "nf4:block_size=32", grid=True
    )  # fmt: skip
    assert compare.form.read(compare.form.show(wanted)[: len(compare.form.inputs)]) == wanted
    assert compare.form.read(values(compare)) == compare.start


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": None},
        {"seed": 1.5},
        {"steps": True},
        {"quantizer": "boom"},
        {"bits": {"bits": "3"}},
        {"bits": None},
        {"model": 3},
    ],
)
def test_form_refuses_what_the_api_may_send(compare: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        _ = compare.form.read(values(compare, **changes)).jobs


def test_price_list_shows_sizes_and_tells_mistakes_in_place(compare: Any) -> None:
    table, link = compare.price(*values(compare, more="nonsense"))
    assert "rvq:bits=3" in table
    assert "nonsense" in table
    assert 'class="bad"' in table
    assert link.startswith("?model=nano")


def test_price_list_is_safe_from_markup(compare: Any) -> None:
    table, _ = compare.price(*values(compare, more="<img src=x onerror=alert(1)>"))
    assert "<img" not in table


def test_work_ahead_is_told_before_the_click_and_again_after_it(compare: Any, bench: Any) -> None:
    bench.made.clear()
    shown = compare.reprice(*values(compare, recipe="@preview"))
    assert "<b>rtn:bits=4</b>, <b>rvq:bits=3</b> each: compresses 60 layers" in shown
    assert (
        "<b>@preview</b>: gathers statistics of 60 layers, once for all calibrated arms, then compresses 60 layers, "
        "then distils for up to 300 updates" in shown
    )
    bench.made.update(("rtn:bits=4", "rvq:bits=3"))
    assert "only sampling is left" in compare.reprice(*values(compare))
    bench.made.clear()


def test_sizes_that_are_a_guess_say_so() -> None:
    exact = FakeWorkbench().estimate("nano", "rtn:bits=4")
    assert "≈" not in sizes_html([exact])
    assert sizes_html([replace(exact, exact=False)]).count("≈ ") == 3


def test_what_is_ready_and_what_takes_how_long_is_told() -> None:
    made = FakeWorkbench().estimate("nano", "fp16")
    item = replace(FakeWorkbench().estimate("nano", "rtn:bits=4"), device="GPU")
    timed = replace(item, work=(Work("calibrate", 5, seconds=60.0), Work("compress", 60, seconds=140.0)))
    assert "Ready: <b>fp16</b>" in cost_html([made, timed])
    assert "compresses 60 layers (about 3 minutes on this GPU)" in cost_html([made, timed])
    assert "compresses 60 layers (not timed on this GPU yet)" in cost_html([made, item])
    fetched = replace(item, work=(Work("download", 1, "some/where"),))
    assert "is fetched from some/where</li>" in cost_html([made, fetched])
    absent = replace(timed, work=(Work("fetch", 1, "some/model"), *timed.work))
    text = "fetches the model from some/model, about 7 GB, then gathers statistics of 5 layers"
    assert text in cost_html([made, absent])
    assert "(about 3 minutes on this GPU)" in cost_html([made, absent])
    assert [state(each) for each in (made, timed, item, fetched)] == ["ready", "about 3 minutes", "not ready", "ready"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "about 1 second"),
        (45, "about 45 seconds"),
        (100, "about 2 minutes"),
        (5340, "about 89 minutes"),
        (9000, "about 2.5 hours"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert wording.about(seconds) == text


def test_the_menu_of_recipes_says_which_are_ready(compare: Any, bench: Any) -> None:
    bench.made.clear()
    assert compare.label_recipes("nano")["choices"] == [("None", ""), ("Preview, 3 bits · not ready", "@preview")]
    bench.made.add("@preview")
    shown = values(compare)
    assert [update[1]["choices"][1][0] for update in (compare.settled(*shown), compare.worked(*shown))] == [
        "Preview, 3 bits · ready"
    ] * 2
    assert compare.label_recipes("nano")["choices"][1] == ("Preview, 3 bits · ready", "@preview")
    bench.made.clear()


@pytest.mark.parametrize("stage", ["fetch", "download", "calibrate", "allocate", "compress", "distil", "quantize"])
def test_every_stage_has_its_sentence(stage: str) -> None:
    exact = FakeWorkbench().estimate("nano", "rtn:bits=4")
    shown = cost_html([replace(exact, work=(Work(stage, 42, "a<b"),))])
    assert "42" in shown or "a&lt;b" in shown


def test_calibrated_quantizers_and_recipes_can_be_chosen(compare: Any) -> None:
    names = [name for _, name in compare.form.widgets["quantizer"].choices]
    calibrated = {info.name for info in catalogue() if parse(info.name).calibrated}
    assert {"aq", "tcq", "gptq"} <= calibrated <= set(names)
    assert [word for _, word in compare.form.widgets["recipe"].choices] == ["", "@preview"]


def test_bits_stay_on_offered_widths(compare: Any) -> None:
    _, bits, *_ = compare.choose_quantizer("kmeans", {"bits": 3.5, "widths": []})
    assert bits["bits"] in bits["widths"]
    assert slider_value((1, 2, 4), 3.2) == {"bits": 4, "widths": [1, 2, 4]}
    assert read_bits({"bits": 3, "widths": [3]}) == 3.0


def test_link_restores_the_form(compare: Any) -> None:
    request = SimpleNamespace(query_params={"seed": "9", "arm": "kmeans:bits=2", "prompt": "a cat"})
    settings = compare.form.read(compare.restore(request)[: len(compare.form.inputs)])
    assert (settings.seed, settings.arm, settings.prompt) == (9, "kmeans:bits=2", "a cat")


def test_the_menu_describes_the_quantizer_it_shows(compare: Any) -> None:
    assert compare.describe("kmeans")["info"] == compare.form.info("kmeans").summary
    assert compare.choose_quantizer("kmeans", None)[0]["info"] == compare.form.info("kmeans").summary


def test_bad_link_gives_one_warning(compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(gr, "Warning", told.append)
    shown = compare.restore(SimpleNamespace(query_params={"seed": "x", "arm": "boom"}))
    assert compare.form.read(shown[: len(compare.form.inputs)]) == compare.start
    assert len(told) == 1
    assert "arm, seed" in told[0]


def test_generate_streams_states_and_ends_idle(compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdvq_core.ui.compare_tab.serve_png", lambda view, path: str(path))
    frames = list(compare.generate(True, *values(compare, steps=2)))
    assert frames[-1][1]["state"] == "done"
    assert frames[0][2]["interactive"] is True
    assert frames[-1][2]["interactive"] is False
    assert frames[-1][4][0] == "nano"


def test_unlocked_seed_is_drawn_anew_and_shown(compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdvq_core.ui.compare_tab.serve_png", lambda view, path: str(path))
    monkeypatch.setattr("secrets.randbelow", lambda below: 77)
    frames = list(compare.generate(False, *values(compare, steps=1)))
    assert frames[-1][3] == 77
    assert frames[-1][0]["rows"][0]["seed"] == 77


def test_arms_in_the_cache_show_their_layers_at_once(compare: Any, bench: Any) -> None:
    bench.made.clear()
    assert compare.at_hand(*values(compare)) is None
    bench.made.add("rvq:bits=3")
    assert compare.at_hand(*values(compare)) == ("nano", ("rvq:bits=3",))


def test_layers_are_hidden_until_there_are_some(layers: Any) -> None:
    hint, body, *_ = layers.fill(None)
    assert (hint["visible"], body["visible"]) == (True, False)


def test_layers_show_the_last_arm_against_the_baseline(layers: Any, bench: Any) -> None:
    bench.made.update(LAST[1])
    hint, body, first, second = layers.fill(LAST)
    assert (hint["visible"], body["visible"]) == (False, True)
    assert (first["value"], second["value"]) == ("rvq:bits=3", "rtn:bits=4")
    bars, heat, scatter, table, download, menu, curve = layers.draw(LAST, "rvq:bits=3", "rtn:bits=4", None)
    assert bars.data[-1].name == "rtn:bits=4"
    assert curve["visible"] is False, "neither was distilled"
    assert heat.data
    assert scatter.data
    assert len(table) == len(menu["choices"]) > 50
    assert menu["value"] == max(table, key=lambda row: row[1])[0], "the worst layer is opened first"
    rows = list(csv.reader(Path(download["value"]).read_text("utf-8").splitlines()))
    assert len(rows) == len(table) + 1
    assert rows[1][-2:] == ["rvq:bits=3", "rtn:bits=4"]


def test_a_distilled_arm_shows_how_it_learnt(layers: Any, bench: Any) -> None:
    arms = ("rtn:bits=4", "@preview")
    bench.made.update(arms)
    for pair in (arms, arms[::-1]):
        *_, curve = layers.draw(("nano", arms), *pair, None)
        assert curve["visible"] is True
        assert [trace.name for trace in curve["value"].data] == ["@preview"]
    bench.made.discard("@preview")


def test_layer_detail_has_numbers_and_figures(layers: Any, bench: Any) -> None:
    bench.made.update(LAST[1])
    facts, histogram, usage = layers.detail(LAST, "rvq:bits=3", "rtn:bits=4", "mid_block.resnets.0.conv1")
    assert "relative error" in facts
    assert "rtn:bits=4" in facts
    assert len(histogram.data) == 4
    assert len(usage.data) == 3


def test_clicks_and_rows_name_the_layer(layers: Any) -> None:
    assert layers.pick(SimpleNamespace(_data={"name": "conv_in"})) == "conv_in"
    assert layers.pick_row(SimpleNamespace(row_value=["conv_in", 1])) == "conv_in"


def test_arm_that_left_the_cache_is_told(layers: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(gr, "Warning", told.append)
    bench.made.clear()
    assert layers.draw(LAST, "rvq:bits=3", "", None)[0] is None
    assert "cache" in told[0]


def test_user_mistakes_become_toasts_and_bugs_surface() -> None:
    def refuse(kind: type[Exception]) -> None:
        raise kind("steps must be 1 to 150, got 0")

    with pytest.raises(gr.Error, match=r"Steps must be 1 to 150, got 0\."):
        friendly(refuse)(ConfigError)
    with pytest.raises(RuntimeError):
        friendly(refuse)(RuntimeError)


def test_stop_says_so_and_marks_what_has_no_picture(compare: Any) -> None:
    frames = compare.generate(True, *values(compare, steps=2))
    first = next(frames)
    frames.close()
    view, shown, button, *_ = compare.stopped(first)
    assert (shown["state"], button["interactive"]) == ("stopped", False)
    assert {cell["state"] for row in view["rows"] for cell in row["cells"]} == {"stopped"}
    assert {cell["state"] for row in first[0]["rows"] for cell in row["cells"]} == {"waiting"}


def test_stop_at_the_end_leaves_what_was_reached(compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdvq_core.ui.compare_tab.serve_png", lambda view, path: str(path))
    *_, last = compare.generate(True, *values(compare, steps=1))
    assert compare.stopped(last) is last


def test_link_of_the_start_is_short_of_defaults(compare: Any) -> None:
    assert "grid" not in replace(compare.start).to_query()
