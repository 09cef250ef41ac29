"""Artifacts from a Hub repository come before compressing; what is not sound is not used; no network is no error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import hub
from huggingface_hub import constants

from sdvq_core.arms import parse_arm
from sdvq_core.errors import ConfigError
from sdvq_core.hub_artifacts import VARIABLE, HubArtifacts
from sdvq_core.jobs import CompareJob, Notice, Progress, Sampling
from sdvq_core.records import Report
from sdvq_core.workbench import Workbench

REPO, WORD = "somebody/artifacts", "rtn:bits=4"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `artifacts` folder of a data folder, as it is uploaded."""
    data = tmp_path_factory.mktemp("maker")
    list(Workbench(data, "cpu").compress("nano", WORD))
    return data / "artifacts"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)


@pytest.fixture
def served(shelf: Path, tmp_path: Path, online: None) -> Iterator[tuple[Workbench, Path, list[str]]]:
    """(a workbench with an empty cache and the repository, the repository's folder, what was asked for)."""
    folder = tmp_path / "hub"
    shutil.copytree(shelf, folder)
    bench = Workbench(tmp_path / "data", "cpu")
    with hub(folder, REPO) as (address, asked):
        bench.engine.shelf.hub = HubArtifacts(REPO, bench.engine.shelf.store, address)
        yield bench, folder, asked


def only(folder: Path) -> Path:
    (found,) = (path for path in folder.iterdir() if not path.name.startswith("."))
    return found


def test_an_artifact_is_fetched_in_the_place_of_compressing(
    served: tuple[Workbench, Path, list[str]], shelf: Path
) -> None:
    bench, _, _ = served
    (work,) = bench.estimate("nano", WORD).work
    assert (work.stage, work.by) == ("download", REPO)
    *events, report = bench.compress("nano", WORD)
    assert {event.stage for event in events if isinstance(event, Progress)} == {"download"}
    assert isinstance(report, Report)
    made, fetched = only(shelf), only(bench.data / "artifacts")
    assert fetched.name == made.name
    assert {path.name for path in fetched.iterdir()} == {path.name for path in made.iterdir()}
    assert all((fetched / path.name).read_bytes() == path.read_bytes() for path in made.iterdir())
    assert bench.estimate("nano", WORD).work == ()


def test_the_list_is_asked_for_once_however_often_the_page_asks(served: tuple[Workbench, Path, list[str]]) -> None:
    bench, _, asked = served
    for _ in range(3):
        bench.estimate("nano", WORD)
        bench.estimate("nano", "rvq:bits=3")
    assert asked == [f"GET /api/models/{REPO}/tree/main"]
    assert [work.stage for work in bench.estimate("nano", "rvq:bits=3").work] == ["compress"]


def damage(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def foreign(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["base"]["fingerprint"] = "0" * 16
    (folder / "config.json").write_text(json.dumps(config))


def incomplete(folder: Path) -> None:
    (folder / "diffusion_pytorch_model.safetensors").unlink()


def other_arm(folder: Path) -> None:
    """Sound, and of the right model, but stored under the key of another arm."""
    bench = Workbench(folder.parents[1] / "other", "cpu")
    list(bench.compress("nano", "rtn:bits=3"))
    shutil.rmtree(folder)
    shutil.copytree(only(bench.data / "artifacts"), folder)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (damage, "damaged"),
        (foreign, "it was made from nano"),
        (incomplete, "has no diffusion_pytorch_model"),
        (other_arm, "stored otherwise"),
    ],
)
def test_what_is_not_sound_is_compressed_here_instead(
    served: tuple[Workbench, Path, list[str]], shelf: Path, spoil: object, reason: str
) -> None:
    bench, folder, _ = served
    spoil(only(folder))  # type: ignore[operator]
    *events, report = bench.compress("nano", WORD)
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert any(REPO in text and reason in text for text in notices), notices
    assert isinstance(report, Report)
    names = ("config.json", "diffusion_pytorch_model.safetensors")
    fetched = only(bench.data / "artifacts")
    assert all((fetched / name).read_bytes() == (only(shelf) / name).read_bytes() for name in names)
    assert [path for path in (bench.data / "artifacts").iterdir() if path.name.startswith(".")] == []


def test_without_network_it_is_skipped_with_one_line_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, REPO)
    bench = Workbench(tmp_path, "cpu")
    assert bench.asks_first
    for _ in range(3):
        assert [work.stage for work in bench.estimate("nano", WORD).work] == ["compress"]
    assert sum(f"artifacts in {REPO} are left out" in record.getMessage() for record in caplog.records) == 1
    assert isinstance(list(bench.compress("nano", WORD))[-1], Report)


@pytest.mark.parametrize("word", ["artifacts", "a/b/c", "/"])
def test_a_name_that_is_no_repository_is_refused(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, word)
    with pytest.raises(ConfigError, match="must be owner/name of a repository"):
        Workbench(tmp_path, "cpu")


def test_a_large_model_is_compressed_only_when_asked(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdvq_core.diffusion.sources.nano_sized", lambda config: False)
    model, sampling = str(tiny_pipeline_folder), Sampling("a red frog", steps=1)
    bench = Workbench(tmp_path, "cpu")
    with pytest.raises(ConfigError, match=r"is not made for .* yet; ask for it to be compressed now"):
        list(bench.compare(CompareJob(model, ("fp16", WORD), sampling, live=False)))
    list(bench.compare(CompareJob(model, ("fp16", WORD), sampling)))
    list(bench.compare(CompareJob(model, ("fp16", WORD), sampling, live=False)))
    assert bench.engine.shelf.made(model, parse_arm(WORD))
