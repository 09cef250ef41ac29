"""What is left in a folder: the same numbers four times, every arm, and nothing that a prompt could break."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from summary_cases import NAUGHTY, result, summary

from sdvq_core.errors import StoreError
from sdvq_core.evaluation import markdown, write_report
from sdvq_core.evaluation.html_report import html_report
from sdvq_core.evaluation.report_files import comma_separated

ARMS = (summary("rtn:bits=4", 0.02), summary("@best", 0.01), summary("out/<b>|x", 0.3))


@pytest.fixture(scope="module")
def page() -> str:
    return html_report(result(*ARMS))


class Reader(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_four_files(tmp_path):
    files = write_report(tmp_path / "out", result(*ARMS))
    assert [file.name for file in files] == ["results.json", "results.csv", "results.md", "report.html"]
    assert sorted((tmp_path / "out").iterdir()) == sorted(files)
    found = json.loads(files[0].read_text("utf-8"))
    assert [arm["arm"] for arm in found["arms"]] == ["fp16", *(arm.arm for arm in ARMS)]
    assert found["arms"][1]["timesteps"] == {
        "n": 2,
        "times": [900.0, 500.0, 100.0],
        "teacher_forced": [0.01, 0.02, 0.03],
        "free_running": [0.001, 0.01, 0.02],
    }
    assert found["arms"][1]["pairs"][0] == {"rank": "worst", "prompt": NAUGHTY, "seed": 7, "psnr": 20.0}
    assert found["prompts"] == [NAUGHTY, "b"]
    assert (found["other_seed"]["label"], found["fp32"]["label"]) == ("another seed", "fp16 rounding of every layer")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be written"):
        write_report(tmp_path / "file" / "out", result(*ARMS))


def test_every_row_has_as_many_cells_as_the_head():
    table = [re.split(r"(?<!\\)\|", line)[1:-1] for line in markdown(result(*ARMS)).splitlines()]
    assert {len(cells) for cells in table} == {11}, "nobody has LPIPS, so that column is left out"
    assert [cells[0].strip() for cells in table[2:4]] == ["`fp16`", "`rtn:bits=4`"]
    assert [cells[0].strip() for cells in table[-2:]] == ["another seed", "fp16 rounding of every layer"]
    rows = list(csv.reader(io.StringIO(comma_separated(result(*ARMS)))))
    assert len(rows) == 1 + 4 + 2
    assert len({len(row) for row in rows}) == 1
    assert rows[2][rows[0].index("latent_mse_median")] == "0.02"
    assert rows[2][rows[0].index("cmmd")] == "0.2"


def test_the_mode_stands_in_every_report():
    found = result(replace(ARMS[0], mode="streaming"))
    assert [line.rsplit("|", 2)[1].strip() for line in markdown(found).splitlines()[2:4]] == ["–", "streaming"]
    assert ">streaming<" in html_report(found)
    assert next(row["mode"] for row in csv.DictReader(io.StringIO(comma_separated(found))) if row["arm"] == ARMS[0].arm)


def test_a_missing_floor_is_left_out():
    found = replace(result(*ARMS), precision_floor=None)
    assert "rounding" not in markdown(found)
    assert "rounding" not in html_report(found)
    assert found.to_json()["fp32"] is None


def test_the_page_names_every_arm_and_escapes_what_people_wrote(page):
    reader = Reader(page)
    text = " ".join(reader.words)
    for name in ("fp16", *(arm.arm for arm in ARMS), "another seed", "fp16 rounding of every layer", NAUGHTY):
        assert name in text
    assert '<script>alert("1")' not in page
    assert "out/<b>|x</code>" not in page


def test_the_page_needs_nothing_else(page):
    tags = Reader(page).tags
    assert not [attrs for tag, attrs in tags if tag in ("link", "iframe", "script") and set(attrs) & {"src", "href"}]
    images = [attrs for tag, attrs in tags if tag == "img"]
    assert len(images) == 4 * 2 * 2, "worst and median of three arms and of the other seed"
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in images)
    assert all(attrs["alt"] for attrs in images)
    assert page.count("plotly.js v") == 1
    assert [attrs["id"] for _, attrs in tags if attrs.get("id", "").startswith("figure-")] == ["figure-0", "figure-1"]


def test_pixels_of_small_images_show_and_large_ones_are_scaled_down():
    small, large = (html_report(result(summary("rtn", 0.1, size))) for size in (64, 1024))
    assert 'class="small"' in small
    assert "scaled down" not in small
    assert "scaled down" in large


def test_a_single_arm_makes_a_page_as_well():
    alone = html_report(result())
    assert "Size against error" not in alone
    assert "Error by timestep" in alone
    assert "plotly.js v" in alone
