"""The real page, on the real workbench and the bundled model, in headless Chromium."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_tools import App

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
READY_SECONDS = 90.0  # a busy machine may be slow; the measured start-up stands in the notes


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """`python app.py` with its own data folder."""
    model = Path(os.environ.get("SDVQ_NANO") or ROOT / "assets" / "nano")
    if not model.is_dir():
        pytest.fail(f"the bundled model is not at {model}; check out assets/nano or set SDVQ_NANO")
    data, files = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("files")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "SDVQ_DATA": str(data), "GRADIO_TEMP_DIR": str(files), "OMP_WAIT_POLICY": "passive"}
    log_path = tmp_path_factory.mktemp("log") / "app.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port)], cwd=ROOT, env=env, stdout=log, stderr=log
        )
        try:
            _wait(f"http://127.0.0.1:{port}", process, log_path)
            yield App(f"http://127.0.0.1:{port}", data, log_path)
        finally:
            process.terminate()
            process.wait(20)
    assert "Traceback" not in log_path.read_text(), log_path.read_text()


@pytest.fixture(autouse=True)
def no_traceback(request: pytest.FixtureRequest) -> Iterator[None]:
    """The app logs no traceback while a test runs."""
    if "app" not in request.fixturenames:
        yield
        return
    log = request.getfixturevalue("app").log
    known = len(log.read_text())
    yield
    new = log.read_text()[known:]
    assert "Traceback" not in new, new


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/gradio_api/info", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    pytest.fail(f"the app did not become ready:\n{log.read_text()}")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser per file; Playwright's loop must not outlive it, other tests run loops of their own."""
    from playwright.sync_api import sync_playwright

    if not Path(CHROMIUM).exists():
        pytest.fail(f"no Chromium at {CHROMIUM}; `apt-get install chromium`, or name one in $CHROMIUM")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--force-device-scale-factor=1"]
        )
        yield browser
        browser.close()
