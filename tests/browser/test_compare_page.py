"""Compare: pictures, zoom, swipe, flip, difference, stop, links, keyboard, narrow and dark pages."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from browser_tools import App, Watched, generate, visit
from PIL import Image, ImageStat
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

QUICK = {"prompt": "a frog on a blue background", "seed": "3", "steps": "4", "baseline": "nf4", "arm": "rtn:bits=3"}


def link(app: App, **changes: str) -> str:
    return f"{app.url}/?{urlencode(QUICK | changes)}"


@pytest.fixture(scope="module")
def compared(app: App, chromium: Any) -> Iterator[Watched]:
    """A page after a finished comparison."""
    watched = visit(chromium, link(app))
    generate(watched.page)
    yield watched
    assert watched.problems == []


@pytest.fixture
def page(compared: Watched) -> Any:
    """That page, side by side and unzoomed."""
    page = compared.page
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.get_by_role("button", name="Side by side", exact=True).click()
    page.get_by_role("button", name="Reset", exact=True).click()
    return page


def pictures(page: Any) -> list[Any]:
    return list(page.locator(".cv-figure img:not(.cv-reference)").all())


def transforms(page: Any) -> list[str]:
    return [image.evaluate("image => getComputedStyle(image).transform") for image in pictures(page)]


def test_every_picture_says_how_its_weights_are_kept(page: Any) -> None:
    first, *others = page.locator(".cv-figure .cv-memory").all_inner_texts()
    assert re.fullmatch(r"resident: [\d.]+ MB of weights in memory", first)
    assert len(others) == 2
    for text in others:
        assert re.fullmatch(r"(resident|streaming): [\d.]+ MB of weights in memory, decoded (once|in every step)", text)


def test_first_visit_is_quiet_and_says_what_to_do(app: App, chromium: Any) -> None:
    watched = visit(chromium, app.url)
    page = watched.page
    expect(page.get_by_text("then press Generate")).to_be_visible()
    expect(page.locator("#sizes tbody tr")).to_have_count(3)
    expect(page.locator("#stop")).to_be_disabled()
    for tab in ("Layers", "Results", "About", "Compare"):
        page.get_by_role("tab", name=tab, exact=True).click()
    page.wait_for_timeout(500)
    assert watched.problems == []


def test_three_arms_show_what_they_cost(page: Any) -> None:
    assert page.locator(".cv-figure[data-state=done]").count() == 3
    promised = [row.inner_text().split("\t")[1] for row in page.locator("#sizes tbody tr").all()]
    shown = [text.split()[0] for text in page.locator(".cv-bits").all_inner_texts()[:3]]
    assert promised == shown, "sizes before compression equal the real ones"
    caption = page.locator("figcaption").nth(2).inner_text()
    for word in ("bits/weight", "PSNR", "SSIM", "Latent error", "dB", "image in"):
        assert word in caption
    assert "identical" in page.locator("figcaption").first.inner_text()


def test_pictures_are_the_files_of_the_server(page: Any, app: App) -> None:
    files = {path.read_bytes() for path in (app.data / "images").glob("*.png")}
    for image in pictures(page):
        body = page.request.get(image.evaluate("image => image.src")).body()
        assert body.startswith(b"\x89PNG")
        assert body in files
        assert image.get_attribute("alt")


def test_small_pictures_are_enlarged_by_a_whole_factor(page: Any) -> None:
    shown = float(page.locator(".cv-zoom output").inner_text().removeprefix("×"))
    assert shown == int(shown) >= 1
    image = pictures(page)[0]
    assert image.evaluate("image => image.getBoundingClientRect().width / image.naturalWidth") == shown
    assert image.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"


def test_zoom_is_shared_and_escape_brings_everything_back(page: Any) -> None:
    home = transforms(page)
    page.locator(".cv-stage").focus()
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    zoomed = transforms(page)
    assert len(set(zoomed)) == 1
    assert zoomed != home
    page.keyboard.press("Escape")
    assert transforms(page) == home


def test_digit_shows_one_arm_and_held_key_the_reference(page: Any) -> None:
    page.locator(".cv-stage").focus()
    page.keyboard.press("2")
    expect(page.locator(".cv-figure:visible")).to_have_count(1)
    page.keyboard.down("r")
    expect(page.locator(".cv-figure.on .cv-reference")).to_be_visible()
    page.keyboard.up("r")
    expect(page.locator(".cv-figure.on .cv-reference")).to_be_hidden()
    page.keyboard.press("2")
    expect(page.locator(".cv-figure:visible")).to_have_count(3)


def test_swipe_divider_moves_with_keys_and_pointer(page: Any) -> None:
    page.get_by_role("button", name="Swipe", exact=True).click()
    page.get_by_label("Picture B").select_option("1")
    expect(page.locator("[data-tag=b]")).to_contain_text("NF4")
    divider = page.get_by_label("Swipe divider, percent")
    divider.focus()
    page.keyboard.press("Home")
    clip = page.locator(".cv-clip").evaluate("clip => getComputedStyle(clip).clipPath")
    assert clip in ("inset(0px)", "inset(0px 0px 0px 0%)")
    box = page.locator(".cv-big").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.1, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, middle)
    page.mouse.up()
    assert abs(int(divider.input_value()) - 75) <= 1


def test_flip_shows_one_of_the_two(page: Any) -> None:
    page.get_by_role("button", name="Flip", exact=True).click()
    expect(page.locator("[data-side=b]")).to_be_hidden()
    page.get_by_role("button", name="Showing A", exact=True).click()
    expect(page.locator("[data-side=b]")).to_be_visible()


def test_difference_map_follows_the_gain(page: Any) -> None:
    page.get_by_role("button", name="Difference", exact=True).click()
    total = "canvas => { const d = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;\
        return d.reduce((sum, value) => sum + value, 0); }"
    canvas = page.locator(".cv-big canvas")
    before = canvas.evaluate(total)
    page.get_by_label("Gain of the difference").focus()
    page.keyboard.press("End")
    assert canvas.evaluate(total) > before
    expect(page.locator("[data-out=difference]")).to_contain_text("of 255")


def test_second_time_comes_from_the_cache(page: Any) -> None:
    generate(page)
    assert page.get_by_text("weights from cache").count() >= 2


def test_four_seeds_make_four_rows(app: App, chromium: Any) -> None:
    page = visit(chromium, link(app, grid="1", baseline="none", steps="2")).page
    generate(page)
    expect(page.locator(".cv-row")).to_have_count(4)
    assert page.locator(".cv-seed").all_inner_texts() == ["Seed 3", "Seed 4", "Seed 5", "Seed 6"]
    sources = {image.get_attribute("src") for image in pictures(page)}
    assert len(sources) == 8


def test_stop_ends_the_work(app: App, chromium: Any) -> None:
    page = visit(chromium, link(app, arm="rvq:bits=4", baseline="none")).page
    artifacts = set((app.data / "artifacts").glob("*"))
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator(".status-head")).to_contain_text("Compressing rvq", timeout=60_000)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator(".status-head")).to_have_text("Stopped")
    assert set((app.data / "artifacts").glob("*")) == artifacts  # the stopped work left nothing behind
    page.goto(link(app))
    page.wait_for_selector("#sizes table")
    generate(page)  # the one place for heavy work is free again
    assert page.locator(".cv-figure[data-state=done]").count() == 3


def test_generate_works_at_once_after_stop(app: App, chromium: Any) -> None:
    page = visit(chromium, link(app, steps="50", baseline="none")).page
    for _ in range(4):
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(page.locator(".status-head")).to_contain_text("Sampling")
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.locator(".status-head")).to_have_text("Stopped")
        assert page.locator(".cv-figure[data-state=stopped]").count() >= 1
    page.get_by_label("number input for Steps").fill("2")
    generate(page)


def test_link_restores_every_control_in_a_fresh_profile(app: App, chromium: Any) -> None:
    wanted = {
        "prompt": "a cat & a dog", "seed": "12", "steps": "7", "guidance": "2.5", "baseline": "none",
        "arm": "kmeans:bits=2,share=layer", "more": "nf4", "grid": "1",
    }  # fmt: skip
    first = visit(chromium, f"{app.url}/?{urlencode(wanted)}").page
    field = first.locator("#link textarea, #link input").first
    expect(field).to_have_value(re.compile("kmeans"))
    second = visit(chromium, field.input_value()).page
    expect(second.get_by_label("Prompt", exact=True)).to_have_value("a cat & a dog")
    expect(second.get_by_label("Seed", exact=True).first).to_have_value("12")
    expect(second.get_by_role("slider", name="Bits per weight")).to_have_attribute("aria-valuetext", "2 bits")
    expect(second.get_by_label("Four seeds in a row")).to_be_checked()
    expect(second.get_by_text("One codebook of short vectors")).to_be_visible()
    expect(second.locator("#sizes tbody th")).to_have_text(["fp16", "kmeans:bits=2,share=layer", "nf4"])
    expect(second.locator("#link textarea, #link input").first).to_have_value(field.input_value())


def test_bad_link_is_told_once_and_does_no_harm(app: App, chromium: Any) -> None:
    watched = visit(chromium, f"{app.url}/?seed=-1&arm=boom&colour=red")
    expect(watched.page.get_by_test_id("toast-body")).to_have_count(1)
    expect(watched.page.get_by_test_id("toast-body")).to_contain_text("arm, colour, seed")
    assert watched.problems == []


def test_mistake_is_one_sentence(app: App, chromium: Any) -> None:
    page = visit(chromium, link(app, more="nonsense:bits=3")).page
    expect(page.locator("#sizes .bad")).to_contain_text("unknown", ignore_case=True)
    page.get_by_role("button", name="Generate", exact=True).click()
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("nonsense")
    assert "Traceback" not in toast.inner_text()


def test_bit_slider_offers_only_the_quantizers_widths(app: App, chromium: Any) -> None:
    page = visit(chromium, link(app, arm="kmeans:bits=3")).page
    slider = page.get_by_role("slider", name="Bits per weight")
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuetext", "4 bits")
    expect(page.locator("#sizes tbody th").last).to_have_text("kmeans:bits=4")


def test_keyboard_alone_gets_to_a_result(app: App, chromium: Any) -> None:
    page = visit(chromium, link(app)).page
    page.get_by_label("Prompt", exact=True).focus()
    _tab_until(page, "document.activeElement.id === 'generate'")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "focus is visible"
    page.keyboard.press("Enter")
    page.wait_for_selector(".status[data-state=done]")
    _tab_until(page, "document.activeElement.classList.contains('cv-stage')")
    page.keyboard.press("3")
    expect(page.locator(".cv-figure:visible")).to_have_count(1)
    page.keyboard.press("w")
    expect(page.locator(".cv-divider")).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_narrow_page_never_scrolls_sideways(app: App, chromium: Any, theme: str) -> None:
    page = visit(chromium, link(app, __theme=theme), width=390, height=844).page
    generate(page)
    for tab in ("Compare", "Layers", "Results", "About"):
        page.get_by_role("tab", name=tab, exact=True).click()
        page.wait_for_timeout(600)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
    if theme == "dark":
        picture = Image.open(io.BytesIO(page.screenshot())).convert("L")
        assert ImageStat.Stat(picture).mean[0] < 90


def test_a_narrow_page_goes_to_the_pictures_when_the_run_begins(app: App, chromium: Any) -> None:
    page = visit(chromium, link(app, steps=150, seed=77), width=390, height=844).page
    assert page.evaluate("scrollY") == 0
    page.get_by_role("button", name="Generate", exact=True).click()
    page.wait_for_function("document.querySelector('#status').getBoundingClientRect().top < innerHeight / 2")
    assert page.locator(".status").get_attribute("data-state") in ("idle", "busy")
    page.wait_for_selector(".status[data-state=done]")


def _tab_until(page: Any, reached: str) -> None:
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(reached):
            return
    pytest.fail(f"not reached with the Tab key: {reached}")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_what_is_ready_and_what_takes_how_long_is_said_before_the_click(
    app: App, chromium: Any, width: int, scheme: str
) -> None:
    watched = visit(chromium, link(app, arm="rvq:bits=2.5", __theme=scheme), width)
    page = watched.page
    expect(page.locator(".cost li", has_text="rvq")).to_contain_text(
        re.compile(r"rvq:bits=2.5: compresses \d+ layers \(about \d+ seconds? on this (CPU|GPU)\)")
    )
    expect(page.locator(".cost")).to_contain_text("Ready: fp16")
    page.get_by_text("More arms").click()
    page.get_by_label("Recipe").click()
    menu = page.get_by_role("option", name=re.compile(r"^(✓\s*)?Preview: .* · (ready|about \d+ seconds?)$"))
    expect(menu).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert watched.problems == []
