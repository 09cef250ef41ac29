"""Generate: events become states of the page; an end of any kind is said."""

from __future__ import annotations

import base64
import math
from dataclasses import replace
from pathlib import Path

import pytest
from fake_workbench import FakeWorkbench
from PIL import Image

from sdvq_core.errors import ConfigError
from sdvq_core.jobs import ArmResult, Progress, Scores
from sdvq_core.records import Footprint, Ledger
from sdvq_core.ui import wording
from sdvq_core.ui.board import PREVIEW_SIDE, data_url
from sdvq_core.ui.run import Frame, Run
from sdvq_core.ui.settings import Settings

SETTINGS = Settings("nano", "a frog", steps=3)


def run(settings: Settings = SETTINGS, bench: FakeWorkbench | None = None, warn: list[str] | None = None) -> Run:
    return Run(
        bench or FakeWorkbench(), settings, lambda path: f"file={path}", (warn if warn is not None else []).append
    )


def test_last_frame_has_every_arm_with_its_file_and_figures() -> None:
    frames = list(run().frames())
    last = frames[-1]
    cells = last.view["rows"][0]["cells"]  # type: ignore[index]
    assert [cell["arm"] for cell in cells] == ["fp16", "rtn:bits=4", "rvq:bits=3"]
    assert all(cell["state"] == "done" and cell["url"].startswith("file=") and cell["alt"] for cell in cells)
    assert cells[1]["scores"][:2] == [["PSNR", "24.3 dB"], ["SSIM", "0.912"]]
    assert cells[0]["memory"] == "resident: 48.0 MB of weights in memory"
    assert cells[1]["memory"] == "streaming: 7.91 MB of weights in memory, decoded in every step"
    assert cells[0]["ratio"] == f"1.0{wording.TIMES}"
    assert (last.status["state"], last.running) == ("done", False)
    assert last.finished == ("nano", ("rtn:bits=4", "rvq:bits=3"))


def test_sizes_are_shown_before_any_picture() -> None:
    first = next(run().frames())
    cells = first.view["rows"][0]["cells"]  # type: ignore[index]
    assert all(cell["state"] == "waiting" and cell["bits"] and not cell["url"] + cell["memory"] for cell in cells)


def test_frames_are_values_that_later_events_do_not_change() -> None:
    frames = run().frames()
    first = next(frames)
    list(frames)
    assert first.view["rows"][0]["cells"][0]["state"] == "waiting"  # type: ignore[index]


def test_grid_has_a_row_per_seed() -> None:
    *_, last = run(replace(SETTINGS, grid=True)).frames()
    rows = last.view["rows"]
    assert [row["seed"] for row in rows] == [0, 1, 2, 3]  # type: ignore[attr-defined]
    assert all(cell["state"] == "done" for row in rows for cell in row["cells"])  # type: ignore[attr-defined]


def test_closing_the_frames_closes_the_work_below() -> None:
    bench = FakeWorkbench()
    frames = run(bench=bench).frames()
    for _ in range(2):
        next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert bench.closed == ["nano"]


def test_unknown_arm_is_refused_before_the_work_starts() -> None:
    with pytest.raises(ConfigError, match="unknown"):
        next(run(replace(SETTINGS, more="nonsense")).frames())


def test_failure_on_the_way_is_shown_and_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = FakeWorkbench()
    monkeypatch.setattr(bench, "_label", lambda arm: arm)
    monkeypatch.setattr(bench, "_ledger", lambda arm: Ledger(8, 0, {"kept": 16}, 16))
    frames: list[Frame] = []
    with pytest.raises(ConfigError, match="boom"):
        frames.extend(_collect(run(replace(SETTINGS, more="boom"), bench), frames))
    assert frames[-1].status["state"] == "failed"
    states = [cell["state"] for cell in frames[-1].view["rows"][0]["cells"]]  # type: ignore[index]
    assert states == ["done", "done", "done", "stopped"]


def test_notices_become_warnings() -> None:
    told: list[str] = []
    list(run(replace(SETTINGS, prompt="word " * 100), warn=told).frames())
    assert len(told) == 1
    assert "cut" in told[0]


def test_unknown_model_is_refused() -> None:
    bench = FakeWorkbench()
    bench.estimate = _refuse  # type: ignore[method-assign, assignment]
    frames = run(replace(SETTINGS, model="no"), bench).frames()
    with pytest.raises(ConfigError):
        next(frames)


def test_preview_is_a_small_png() -> None:
    url = data_url(Image.new("RGB", (1024, 512), "red"))
    head, _, body = url.partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(body)[:4] == b"\x89PNG"
    assert len(body) < 4 * PREVIEW_SIDE * PREVIEW_SIDE


def test_words_for_numbers() -> None:
    ledger = Ledger(1_000_000, 900_000, {"codes": 400_000, "codebooks": 0, "scales": 0, "kept": 100_000}, 500_900)
    assert (wording.size(ledger.tensor_bytes), wording.bits(ledger)) == ("500 kB", "4.00")
    assert wording.size(7_123_456) == "7.12 MB"
    assert [wording.seconds(value) for value in (None, 2.34, 34.5, 300)] == [wording.NONE, "2.3 s", "34 s", "5.0 min"]
    assert dict(wording.scores(Scores(psnr=math.inf, ssim=1.0)))["PSNR"] == "identical"
    assert wording.scores(Scores()) == []


def test_progress_names_stage_layer_and_time_left() -> None:
    head, detail = wording.progress(Progress("compress", "rvq:bits=3", 34, 124, "mid.conv1", 12.0))
    assert head == "Compressing rvq:bits=3"
    assert detail == "layer 34 of 124 · mid.conv1 · about 12 s left"


def test_image_time_says_where_the_weights_came_from(tmp_path: Path) -> None:
    ledger = Ledger(1, 0, {"kept": 2}, 2)
    image = Image.new("RGB", (2, 2))
    fresh = ArmResult("a", "A", image, tmp_path, 2.0, ledger, Scores(), Footprint("resident", 4), None, False, 11.0)
    assert wording.made(fresh) == "image in 2 s · compressed in 11 s"
    assert "cache" in wording.made(replace(fresh, cached=True))


def test_words_for_memory() -> None:
    assert wording.memory(Footprint("resident", 131_000_000)) == "resident: 131 MB of weights in memory"
    once = wording.memory(Footprint("resident", 131_000_000, 90_000_000))
    assert once == "resident: 131 MB of weights in memory, decoded once"


def _collect(work: Run, frames: list[Frame]) -> list[Frame]:
    for frame in work.frames():
        frames.append(frame)
    return []


def _refuse(model: str, arm: str) -> None:
    raise ConfigError(f"unknown model {model!r}")
