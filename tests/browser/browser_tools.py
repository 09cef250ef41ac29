"""What the browser tests share: the running app, a watched page, a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

PATIENCE_MS = 120_000
expect.set_options(timeout=30_000)  # a busy machine may be slow


@dataclass(frozen=True)
class App:
    """The running page, the folder where its workbench keeps images and artifacts, and its log."""

    url: str
    data: Path
    log: Path


@dataclass
class Watched:
    """A page and what went wrong on it."""

    page: Any
    problems: list[str] = field(default_factory=list)


def visit(browser: Any, url: str, width: int = 1280, height: int = 900) -> Watched:
    """A fresh profile on `url`, ready to use."""
    page = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True).new_page()
    page.set_default_timeout(PATIENCE_MS)
    watched = Watched(page)
    page.on("console", lambda line: watched.problems.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: watched.problems.append(str(error)))
    page.on("request", lambda request: _own(request.url, watched.problems))
    page.on("response", lambda answer: watched.problems.append(answer.url) if answer.status >= 400 else None)
    page.goto(url)
    page.wait_for_selector("#sizes table")
    return watched


def _own(url: str, problems: list[str]) -> None:
    if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
        problems.append(f"outside request: {url}")


def generate(page: Any) -> None:
    """Press Generate and wait until every picture is there."""
    before = page.locator(".cv").get_attribute("data-run") or ""
    page.get_by_role("button", name="Generate", exact=True).click()
    page.wait_for_selector(f".cv:not([data-run='{before}'])")
    page.wait_for_selector(".status[data-state=done]")
