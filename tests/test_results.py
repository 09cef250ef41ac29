"""What was measured is found again, for its own model only, with the command that measures it once more."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest
from summary_cases import result, summary

from sdvq_core.diffusion.sources import find_source
from sdvq_core.errors import StoreError
from sdvq_core.jobs import Sampling
from sdvq_core.records import BaseInfo
from sdvq_core.results import BUNDLED, evenly, find_results, first_command, keep_results, same_command
from sdvq_core.summaries import EvaluateJob, EvaluateResult

MEASURED = replace(result(summary("rtn:bits=4", 0.02)), base=BaseInfo("nano", "abc"), date="2026-11-21")


def test_json_and_back():
    back = EvaluateResult.from_json(json.loads(json.dumps(MEASURED.to_json())))
    assert back.job == MEASURED.job
    assert (back.base, back.date, back.device) == (MEASURED.base, MEASURED.date, MEASURED.device)
    assert [floor.label for floor in back.floors] == [floor.label for floor in MEASURED.floors]
    written = MEASURED.to_json()
    for arm in (*written["arms"], written["other_seed"], written["fp32"]):
        arm["pairs"] = []
    assert json.loads(json.dumps(back.to_json())) == json.loads(json.dumps(written))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"version": None},
        {"arms": []},
        {"arms": ["rtn"]},
        {"steps": 0},
        {"base": {"id": "nano"}},
        {"other_seed": None},
        {"fp32": {}},
        {"prompts": None},
        {"seeds": "two"},
    ],
)
def test_something_else_is_refused(changes):
    with pytest.raises(StoreError, match="results"):
        EvaluateResult.from_json({**MEASURED.to_json(), **changes})


def test_the_newest_evaluation_goes_before_the_bundled_one(tmp_path):
    data, bundled = tmp_path / "data", tmp_path / "bundled"
    assert find_results(data, "abc", bundled) is None
    bundled.mkdir()
    (bundled / "nano.json").write_text(json.dumps(replace(MEASURED, device="theirs").to_json()))
    found, is_bundled = find_results(data, "abc", bundled)
    assert (found.device, is_bundled) == ("theirs", True)
    for device in ("first", "second"):
        keep_results(data, replace(MEASURED, device=device))
    found, is_bundled = find_results(data, "abc", bundled)
    assert (found.device, is_bundled) == ("second", False)
    larger = replace(MEASURED, device="theirs", job=replace(MEASURED.job, seeds=MEASURED.job.seeds + 1))
    (bundled / "nano.json").write_text(json.dumps(larger.to_json()))
    found, is_bundled = find_results(data, "abc", bundled)
    assert (found.device, is_bundled) == ("theirs", True), "a quick look does not hide a thorough one"


def test_results_of_another_model_do_not_count(tmp_path):
    keep_results(tmp_path, MEASURED)
    assert find_results(tmp_path, "other", tmp_path / "none") is None
    (tmp_path / "results" / "abc.json").rename(tmp_path / "results" / "other.json")
    assert find_results(tmp_path, "other", tmp_path / "none") is None


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"null", b"{}", b'{"version": 1, "arms": [3]}'])
def test_a_damaged_file_is_passed_over(tmp_path, content):
    keep_results(tmp_path, MEASURED)
    (tmp_path / "results" / "abc.json").write_bytes(content)
    assert find_results(tmp_path, "abc", tmp_path / "none") is None


def test_bundled_results_are_readable():
    files = sorted(BUNDLED.glob("*.json"))
    assert files
    for path in files:
        found = EvaluateResult.from_json(json.loads(path.read_text("utf-8")))
        assert found.base is not None
        assert len(found.arms) > 2
        assert all(arm.timesteps for arm in found.arms[1:])


def test_evenly_spaced():
    assert evenly(range(10), 3) == [0, 3, 6]
    assert evenly("ab", 5) == ["a", "b"]


def test_the_same_command_makes_the_same_job():
    prompts, source = [f"prompt {place}" for place in range(9)], find_source("nano")
    usual = Sampling("", 0, source.steps, source.guidance)
    job = EvaluateJob("nano", ("fp16", "rtn:bits=4"), tuple(evenly(prompts, 4)), usual)
    words = "python -m sdvq_core evaluate nano --arm fp16 --arm rtn:bits=4"
    assert same_command("nano", job, source, prompts) == f"{words} --n 4 --out out/results"
    other = replace(job, prompts=("a cat",), seeds=2, sampling=Sampling("", 4_294_967_295, source.steps, 2.5))
    assert same_command("nano", other, source, prompts) == (
        f"{words} --prompts prompts.txt --seeds 2 --seed 4294967295 --guidance 2.5 --out out/results"
    )


def test_a_first_command_survives_a_shell():
    command = first_command("my model", ["fp16", "a b; rm -rf"], ["x"] * 200)
    assert shlex.split(command)[4:9] == ["my model", "--arm", "fp16", "--arm", "a b; rm -rf"]
    assert " --n 128 " in command
    assert " --n 2 " in first_command("nano", ["fp16"], ["x", "y"])
