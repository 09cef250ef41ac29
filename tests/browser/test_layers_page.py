"""Layers: figures, a layer by click, by menu and by table, the CSV, the dark theme; and the public endpoints."""

from __future__ import annotations

import csv
import io
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from browser_tools import App, Watched, generate, visit
from PIL import Image
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

QUICK = {"prompt": "a frog on a blue background", "seed": "3", "steps": "4", "baseline": "nf4", "arm": "rtn:bits=3"}


@pytest.fixture(scope="module")
def shown(app: App, chromium: Any) -> Iterator[Watched]:
    """The Layers tab of a dark page after a comparison."""
    watched = visit(chromium, f"{app.url}/?{urlencode(QUICK | {'__theme': 'dark'})}")
    generate(watched.page)
    watched.page.get_by_role("tab", name="Layers", exact=True).click()
    watched.page.wait_for_selector("#bars .bars .point")
    watched.page.wait_for_selector("#layer-facts table")
    yield watched
    assert watched.problems == []


def layer_in_detail(page: Any) -> str:
    return str(page.locator("#layer-facts code").inner_text())


def test_every_layer_has_a_bar_and_a_diamond(shown: Watched) -> None:
    bars = shown.page.locator("#bars .bars .point").count()
    diamonds = shown.page.locator("#bars .scatterlayer .point").count()
    assert bars == diamonds > 20
    assert shown.page.locator("#scatter .scatterlayer .point").count() == 2 * bars
    assert shown.page.locator("#heat .hm").count() == 2


def test_plots_are_dark_on_a_dark_page(shown: Watched) -> None:
    for name in ("bars", "histogram", "heat", "scatter"):
        shot = shown.page.locator(f"#{name} .js-plotly-plot").screenshot()
        picture = Image.open(io.BytesIO(shot)).convert("L")
        assert picture.getpixel((3, picture.height - 3)) < 90, name


def test_click_on_a_bar_opens_its_layer(shown: Watched) -> None:
    page = shown.page
    before = layer_in_detail(page)
    page.evaluate("scrollTo(0, 0)")
    box = page.locator("#bars .bars .point path").nth(5).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 15)
    page.wait_for_selector("#bars .hovertext")
    page.mouse.down()
    page.mouse.up()
    expect(page.locator("#layer-facts code")).not_to_have_text(before)


def test_menu_is_a_keyboard_path_to_a_layer(shown: Watched) -> None:
    page = shown.page
    menu = page.get_by_label("Layer in detail")
    before = layer_in_detail(page)
    menu.focus()
    menu.fill("mid")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#layer-facts code")).not_to_have_text(before)
    assert "mid_block" in layer_in_detail(page)
    expect(page.locator("#layer-facts")).to_contain_text("relative error")
    assert page.locator("#histogram .trace").count() >= 2


def test_row_of_the_table_opens_its_layer(shown: Watched) -> None:
    page = shown.page
    row = page.locator("#layer-table").get_by_text("down_blocks.0.resnets.0.conv1").first
    row.click()
    expect(page.locator("#layer-facts code")).to_have_text("down_blocks.0.resnets.0.conv1")


def test_csv_holds_every_layer(shown: Watched, tmp_path: Path) -> None:
    with shown.page.expect_download() as download:
        shown.page.locator("#csv").click()
    path = tmp_path / "layers.csv"
    download.value.save_as(path)
    rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
    assert len(rows) == shown.page.locator("#bars .bars .point").count()
    assert {row["arm"] for row in rows} == {"rtn:bits=3"}
    assert all(float(row["relative_mse"]) > 0 for row in rows)


def call(app: App, name: str, *values: object) -> Any:
    """The answer of a public endpoint over plain HTTP."""
    body = json.dumps({"data": values}).encode()
    request = urllib.request.Request(f"{app.url}/gradio_api/call/{name}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{app.url}/gradio_api/call/{name}/{event}", timeout=120) as stream:
        lines = stream.read().decode().splitlines()
    return lines[0], json.loads(lines[1].removeprefix("data: "))


def test_endpoints_answer_with_the_contracts_ledger(app: App) -> None:
    kind, (ledger,) = call(app, "estimate", "nano", "rtn:bits=4")
    assert kind == "event: complete"
    assert {"tensor_bytes", "bits_per_weight", "ratio", "parts", "fallbacks"} <= set(ledger)
    kind, answer = call(app, "estimate", "nano", "boom")
    assert kind == "event: error"
    assert "boom" in json.dumps(answer)


def test_monitoring_and_history_are_closed(app: App) -> None:
    for path in ("monitoring/summary", "gradio_api/runs"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{app.url}/{path}", timeout=10)
