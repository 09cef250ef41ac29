"""Peers as arms: words, messages where a library is missing, and the service around them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdvq_core import Workbench
from sdvq_core.arms import parse_arm
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import ArmResult, CompareJob, Sampling
from sdvq_core.peers import EXTRA, Peer, catalogue
from sdvq_core.summaries import EvaluateJob, EvaluateResult

SAMPLING = Sampling("a frog", seed=3, steps=2, guidance=3.0)
WORD = "lib.quanto:bits=8"
needs_quanto = pytest.mark.skipif(
    not next(info.installed for info in catalogue() if info.name == "lib.quanto"),
    reason=f"optimum-quanto is not installed; {EXTRA}",
)


@pytest.fixture
def workbench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path / "data", "cpu")


@pytest.fixture
def model(tiny_pipeline_folder: Path) -> str:
    return str(tiny_pipeline_folder)


def test_a_missing_library_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(Peer, "version", classmethod(lambda cls: None))
    with pytest.raises(ConfigError, match=r"lib.hqq:bits=4 needs hqq.* pip install -r requirements-peers.txt$"):
        parse_arm("lib.hqq:bits=4")
    assert not any(info.installed for info in catalogue())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lib.nope", "choose one of lib.bitsandbytes, lib.gguf, lib.hqq, lib.quanto, lib.sdnq"),
        ("lib.hqq:bits=5", r"must be one of \(1, 2, 3, 4, 8\)"),
        ("lib.gguf:bits=3", r"must be one of \(4, 5, 8\)"),
        ("lib.gguf:bits=4,type=Q8_0", "suit the type"),
        ("lib.bitsandbytes:bits=3", "must be 4"),
        ("lib.quanto:layers=some", r"must be one of \(same, own\)"),
        ("lib.sdnq:blub=1", "has no knob 'blub'"),
    ],
)
def test_wrong_words_say_what_there_is(monkeypatch, word, message):
    monkeypatch.setattr(Peer, "version", classmethod(lambda cls: "1"))
    with pytest.raises(ConfigError, match=message):
        parse_arm(word)


@pytest.mark.parametrize(
    ("word", "label", "spelt"),
    [
        ("lib.bitsandbytes", "bitsandbytes NF4", "lib.bitsandbytes"),
        ("lib.gguf:bits=5,layers=own", "GGUF Q5_0, its own layers", "lib.gguf:layers=own,type=Q5_0"),
        ("lib.hqq:bits=4", "HQQ (library) 4-bit", "lib.hqq"),
    ],
)
def test_words_become_arms_without_loading_any_library(monkeypatch, word, label, spelt):
    monkeypatch.setattr(Peer, "version", classmethod(lambda cls: "1"))
    arm = parse_arm(word)
    assert (arm.label, str(arm.peer), arm.rules) == (label, spelt, ())


@needs_quanto
def test_a_peer_is_compared_under_its_own_name_and_remembered(workbench, model):
    job = CompareJob(model, ("fp16", WORD, "lib.quanto:bits=4"), SAMPLING)
    fp16, eight, four = _arms(workbench, job)
    assert 0 < eight.scores.latent_mse < four.scores.latent_mse
    assert eight.ledger == eight.report.ledger == workbench.estimate(model, WORD).ledger
    assert fp16.report is None
    assert not eight.cached
    assert workbench.report(model, WORD).versions.keys() == {"optimum-quanto"}
    again = _arms(workbench, job)
    assert again[1].cached
    assert again[1].path.read_bytes() == eight.path.read_bytes()


@needs_quanto
def test_the_size_in_advance_needs_no_weights_and_is_the_size_after(workbench, model):
    before = workbench.estimate(model, WORD).ledger
    assert workbench.report(model, WORD) is None
    _, arm = _arms(workbench, CompareJob(model, ("fp16", WORD), SAMPLING))
    assert before == arm.ledger
    own = workbench.estimate(model, f"{WORD},layers=own").ledger
    assert own.bits_per_weight > before.bits_per_weight
    assert any(item.layer.endswith("conv1") for item in own.fallbacks)


@needs_quanto
def test_a_peer_is_evaluated_like_any_arm(workbench, model):
    job = EvaluateJob(model, ("fp16", WORD), ("a", "b"), SAMPLING)
    result = next(event for event in workbench.evaluate(job) if isinstance(event, EvaluateResult))
    assert result.arms[1].ledger == workbench.estimate(model, WORD).ledger
    assert result.arms[1].measures["latent_mse"].mean > 0


@needs_quanto
def test_a_peer_is_not_saved_and_has_no_details(workbench, model):
    with pytest.raises(ConfigError, match="cannot be saved here"):
        list(workbench.compress(model, WORD))
    with pytest.raises(ConfigError, match="without details"):
        workbench.layer_detail(model, WORD, "mid_block")


@needs_quanto
def test_another_model_makes_the_peer_again(workbench, model, tmp_path):
    import shutil

    _arms(workbench, CompareJob(model, ("fp16", WORD), SAMPLING))
    other = shutil.copytree(model, tmp_path / "other")
    assert workbench.report(str(other), WORD) is None
    _arms(workbench, CompareJob(str(other), ("fp16", WORD), SAMPLING))
    assert workbench.report(str(other), WORD) is not None
    assert workbench.report(model, WORD) is None


def _arms(workbench: Workbench, job: CompareJob) -> list[ArmResult]:
    return [event for event in workbench.compare(job) if isinstance(event, ArmResult)]
