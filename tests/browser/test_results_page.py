"""Results: figures, axis, chosen arms, a click that adds one, the narrow page, a model that nobody measured."""

from __future__ import annotations

import io
import json
import re
from typing import Any
from urllib.parse import urlencode

import pytest
from browser_tools import App, Watched, visit
from PIL import Image
from playwright.sync_api import expect

from sdvq_core.results import BUNDLED

pytestmark = pytest.mark.browser

MEASURED = json.loads((BUNDLED / "nano.json").read_text("utf-8"))
WORDS = [arm["arm"] for arm in MEASURED["arms"]]
CHOSEN = {"baseline": "none", "arm": "rvq:bits=3"}


def opened(app: App, chromium: Any, width: int = 1280, **changes: str) -> Watched:
    """The Results tab of a fresh page."""
    watched = visit(chromium, f"{app.url}/?{urlencode(CHOSEN | changes)}", width=width)
    expect(watched.page.locator("#sizes tbody tr")).to_have_count(2)
    watched.page.get_by_role("tab", name="Results", exact=True).click()
    return watched


def points(page: Any) -> Any:
    return page.locator("#rate-distortion .points .point")


def test_every_arm_has_a_point_and_a_row_and_the_chosen_one_is_marked(app: App, chromium: Any) -> None:
    watched = opened(app, chromium)
    page = watched.page
    expect(points(page)).to_have_count(len(WORDS) - 1)
    named = page.locator("#rate-distortion .textpoint").filter(has_text=re.compile(r"\S"))
    expect(named).to_have_text(["rvq:bits=3"])
    expect(page.locator(".results tbody tr")).to_have_count(len(WORDS) + 2)
    expect(page.locator(".results .chosen th")).to_have_text(["★ rvq:bits=3"])
    expect(page.locator("#timesteps .scatterlayer .trace").first).to_be_visible()
    expect(page.locator("#measured")).to_contain_text(f"{MEASURED['n']} prompts")
    expect(page.locator("#measured pre")).to_contain_text("python -m sdvq_core evaluate nano --arm fp16")
    assert watched.problems == []


def test_axis_follows_the_switch_by_keyboard(app: App, chromium: Any) -> None:
    page = opened(app, chromium).page
    title = page.locator("#rate-distortion .xtitle")
    expect(title).to_have_text("megabytes, every tensor of the UNet")
    page.get_by_label("megabytes", exact=True).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(title).to_have_text("bits per weight, whole UNet")


def test_click_on_a_point_adds_its_arm_to_the_comparison(app: App, chromium: Any) -> None:
    watched = opened(app, chromium)
    page = watched.page
    expect(points(page)).to_have_count(len(WORDS) - 1)
    point = points(page).first  # chosen ones come last, above the others
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#rate-distortion .hovertext")
    page.mouse.down()
    page.mouse.up()
    expect(page.locator(".results .chosen")).to_have_count(2)
    added = page.get_by_test_id("toast-body").inner_text()
    page.get_by_role("tab", name="Compare", exact=True).click()
    expect(page.locator("#sizes tbody th")).to_have_count(3)
    assert page.locator("#sizes tbody th").last.inner_text() in added
    assert watched.problems == []


def test_change_on_the_compare_tab_is_seen_when_the_tab_is_opened_again(app: App, chromium: Any) -> None:
    page = opened(app, chromium).page
    expect(page.locator(".results .chosen")).to_have_count(1)
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.get_by_role("slider", name="Bits per weight").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#sizes tbody th").last).not_to_have_text("rvq:bits=3")
    page.get_by_role("tab", name="Results", exact=True).click()
    expect(page.locator("#measured")).to_contain_text("not measured")
    expect(page.locator(".results .chosen")).to_have_count(0)


def test_model_that_nobody_measured_gets_the_command(app: App, chromium: Any) -> None:
    page = opened(app, chromium, model="sdxl-turbo").page
    expect(page.locator("#measured")).to_contain_text("No results for sdxl-turbo yet")
    expect(page.locator("#measured pre")).to_contain_text("evaluate sdxl-turbo --arm fp16 --arm rvq:bits=3 --n ")
    expect(page.locator(".results")).to_have_count(0)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_narrow_page_scrolls_the_table_only(app: App, chromium: Any, theme: str) -> None:
    page = opened(app, chromium, width=390, __theme=theme).page
    expect(points(page)).to_have_count(len(WORDS) - 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = page.get_by_role("region", name="Results", exact=True)
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    box.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.results-box').scrollLeft > 0")
    for name in ("rate-distortion", "timesteps"):
        shot = page.locator(f"#{name} .js-plotly-plot").screenshot()
        picture = Image.open(io.BytesIO(shot)).convert("L")
        assert (picture.getpixel((3, picture.height - 3)) < 90) == (theme == "dark"), name
