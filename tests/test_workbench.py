"""The service: events in order, caches that hit, cancels that stop, mistakes that cost nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from sdvq_core import Workbench, load_artifact
from sdvq_core import engine as engine_room
from sdvq_core.arms import parse_arm
from sdvq_core.diffusion.sampling import sample
from sdvq_core.errors import ConfigError, SdvqError, StoreError
from sdvq_core.jobs import ArmResult, CompareJob, CompareResult, Notice, Preview, Progress, Sampling
from sdvq_core.nn import QuantizedLayer, modes
from sdvq_core.records import Report
from sdvq_core.summaries import EvaluateJob, EvaluateResult

SAMPLING = Sampling("a frog on a blue background", seed=3, steps=3, guidance=3.0)
ARMS = ("fp16", "rtn:bits=4", "rvq:bits=2,beam=2")


@pytest.fixture
def workbench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path / "data", "cpu")


@pytest.fixture
def model(tiny_pipeline_folder: Path) -> str:
    return str(tiny_pipeline_folder)


def _compare(workbench: Workbench, model: str, arms: tuple[str, ...] = ARMS, sampling: Sampling = SAMPLING):
    events = list(workbench.compare(CompareJob(model, arms, sampling)))
    return events, [event for event in events if isinstance(event, ArmResult)]


def test_compare_yields_progress_previews_and_one_result_per_arm(workbench, model):
    events, arms = _compare(workbench, model)
    assert [arm.arm for arm in arms] == list(ARMS)
    assert isinstance(events[-1], CompareResult)
    assert events[-1].arms == tuple(arms)
    assert {event.stage for event in events if isinstance(event, Progress)} == {"load", "compress", "sample"}
    assert any(isinstance(event, Preview) for event in events)


def test_the_reference_is_itself_and_more_bits_are_nearer(workbench, model):
    _, (fp16, rtn, rvq) = _compare(workbench, model)
    assert fp16.scores.latent_mse == 0
    assert math.isinf(fp16.scores.psnr)
    assert fp16.to_json()["psnr"] is None
    assert 0 < rtn.scores.latent_mse < rvq.scores.latent_mse


def test_second_comparison_comes_from_the_cache_with_the_same_pixels(workbench, model, tmp_path):
    _, first = _compare(workbench, model)
    fresh = Workbench(tmp_path / "data", "cpu")  # another process, same folder
    events, second = _compare(fresh, model)
    assert not [event for event in events if isinstance(event, Progress) and event.stage == "compress"]
    assert [arm.path.read_bytes() for arm in first] == [arm.path.read_bytes() for arm in second]
    assert [arm.cached for arm in second] == [False, True, True]


def test_ledger_before_and_after_agree_to_the_byte(workbench, model):
    before = [workbench.estimate(model, arm).ledger for arm in ARMS]
    _, arms = _compare(workbench, model)
    assert before == [arm.ledger for arm in arms]
    for arm in arms[1:]:
        file = Path(arm.report.artifact) / "diffusion_pytorch_model.safetensors"
        assert file.stat().st_size == arm.ledger.file_bytes


def test_the_artifact_draws_the_same_image_as_the_arm(workbench, model, tmp_path):
    report = next(event for event in workbench.compress(model, ARMS[2], tmp_path / "out") if isinstance(event, Report))
    assert load_artifact(report.artifact).config.in_channels
    _, (_, arm, artifact) = _compare(workbench, model, ("fp16", ARMS[2], report.artifact))
    assert arm.image.tobytes() == artifact.image.tobytes()


def test_png_files_carry_their_receipt_and_are_lossless(workbench, model):
    _, arms = _compare(workbench, model, ("fp16",))
    with Image.open(arms[0].path) as image:
        assert image.text["prompt"] == SAMPLING.prompt
        assert image.text["arm"] == "fp16"
        assert image.tobytes() == arms[0].image.tobytes()


@pytest.mark.parametrize(("stage", "finished"), [("sample", 0), ("compress", 1)])
def test_closing_the_generator_stops_the_work_and_leaves_nothing_half_made(workbench, model, stage, finished, tmp_path):
    events = workbench.compare(CompareJob(model, ARMS, SAMPLING))
    for event in events:
        if isinstance(event, Progress) and event.stage == stage and event.done:
            break
    events.close()
    assert len(list((tmp_path / "data").glob("images/*"))) == finished  # fp16 comes before the first compression
    assert not list((tmp_path / "data").glob("artifacts/*"))
    assert not list((tmp_path / "data").rglob(".*.tmp"))


def test_a_damaged_cache_entry_is_made_again(workbench, model, tmp_path):
    _, first = _compare(workbench, model)
    file = Path(first[1].report.artifact) / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    _, second = _compare(Workbench(tmp_path / "data", "cpu"), model)
    assert second[1].path.read_bytes() == first[1].path.read_bytes()


def test_report_is_none_until_the_arm_is_made(workbench, model):
    assert workbench.report(model, "rtn") is None
    assert workbench.report(model, "fp16") is None
    list(workbench.compress(model, "rtn"))
    assert workbench.report(model, "rtn").layers == workbench.report(model, "rtn:bits=4").layers


def test_layer_detail_counts_every_weight(workbench, model):
    list(workbench.compress(model, ARMS[2]))
    layer = workbench.report(model, ARMS[2]).layers[0]
    detail = workbench.layer_detail(model, ARMS[2], layer.name)
    assert sum(detail.histogram.original) == sum(detail.histogram.decoded) == math.prod(layer.shape)
    assert len(detail.usage) == 2
    assert all(1 <= value <= 256 for value in detail.perplexity)
    with pytest.raises(ConfigError, match="no compressed layer"):
        workbench.layer_detail(model, ARMS[2], "conv_in")


@pytest.mark.parametrize("arm", ["rtn:bits=9", "rvq:bits=0.7", "nope", "@nope", "nf4:bits=3", "rtn:blub=1", "a/b"])
def test_a_wrong_arm_is_refused_before_any_work(workbench, model, arm):
    with pytest.raises(SdvqError):
        list(workbench.compare(CompareJob(model, ("fp16", arm), SAMPLING)))


def test_an_artifact_of_another_model_is_refused(workbench, model, tmp_path):
    report = next(event for event in workbench.compress(model, "rtn", tmp_path / "out") if isinstance(event, Report))
    config = Path(report.artifact) / "config.json"
    config.write_text(config.read_text().replace(report.base.fingerprint, "0" * 16))
    with pytest.raises(StoreError, match="was made from"):
        _compare(workbench, model, ("fp16", report.artifact))


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"steps": 151}, {"seed": -1}, {"guidance": math.nan}, {"steps": True}, {"seed": 1.5}]
)
def test_sampling_refuses_what_widgets_let_through(settings):
    with pytest.raises(ConfigError, match="must be"):
        Sampling(**{"prompt": "", **settings})


def test_evaluate_summarises_every_arm(workbench, model):
    prompts = ("a", "b", "c")
    events = list(workbench.evaluate(EvaluateJob(model, ARMS, prompts, SAMPLING)))
    result = events[-1]
    assert isinstance(result, EvaluateResult)
    fp16, rtn, rvq = result.arms
    assert fp16.fork_rate == 0
    assert fp16.measures["psnr"] is None
    assert rtn.measures["psnr"].mean > rvq.measures["psnr"].mean
    assert rtn.measures["latent_mse"].low <= rtn.measures["latent_mse"].mean <= rtn.measures["latent_mse"].high
    assert result.noise_floor.measures["latent_mse"].mean > rvq.measures["latent_mse"].mean
    assert result.noise_floor.fork_rate == 1


def test_results_are_those_of_the_newest_evaluation(workbench, model, tmp_path):
    assert workbench.results(model) is None
    for steps in (2, 1):
        job = EvaluateJob(model, ("fp16", "rtn:bits=4"), ("a",), replace(SAMPLING, prompt="", steps=steps))
        result = list(workbench.evaluate(job))[-1]
    found = Workbench(tmp_path / "data", "cpu").results(model)
    assert found.measured.job == job
    assert found.measured.arms[1].measures == result.arms[1].measures
    assert found.measured.base.fingerprint == workbench.engine.shelf.fingerprint(model)
    assert not found.bundled
    assert " --steps 1 " in found.command
    (tmp_path / "data" / "results" / f"{found.measured.base.fingerprint}.json").write_text("{")
    assert workbench.results(model) is None


def test_the_bundled_model_comes_with_results(workbench):
    found = workbench.results("nano")
    assert found.bundled
    assert found.command.startswith("python -m sdvq_core evaluate nano --arm fp16 ")
    assert f" --n {len(found.measured.job.prompts)} " in found.command


def test_a_model_that_is_not_at_hand_has_no_results_but_a_command(workbench):
    assert workbench.results("sdxl-turbo") is None
    assert "evaluate sdxl-turbo --arm fp16" in workbench.evaluate_command("sdxl-turbo", ("fp16",))


def stages(workbench, model, arm):
    return [(work.stage, work.count) for work in workbench.estimate(model, arm).work]


def test_work_ahead_is_what_is_then_done(workbench, model):
    assert workbench.estimate(model, "fp16").work == ()
    layers = len(workbench.engine.shelf.plan(model, parse_arm("gptq")).assignments)
    assert stages(workbench, model, "gptq") == [("calibrate", layers), ("compress", layers)]
    seen = {event.stage for event in workbench.compress(model, "gptq") if isinstance(event, Progress)}
    assert seen == {"load", "calibrate", "compress"}
    assert stages(workbench, model, "gptq") == []
    assert stages(workbench, model, "gptq:bits=3") == [("compress", layers)], "statistics are kept"


def test_work_of_an_arm_whose_bits_are_yet_to_be_allocated(workbench, model):
    found = workbench.estimate(model, "rtn:bits=4.5")
    assert not found.exact
    (allocate, count), (compress, _) = stages(workbench, model, "rtn:bits=4.5")
    assert (allocate, compress) == ("allocate", "compress")
    assert count >= 2


def test_work_of_a_recipe_names_its_updates(workbench):
    assert stages(workbench, "nano", "@best-3bit")[-1] == ("distil", 300)
    assert [stage for stage, _ in stages(workbench, "sdxl", "aq:bits=3")] == ["fetch", "calibrate", "compress"]


def test_looking_at_a_model_that_is_not_at_hand_downloads_nothing(workbench, monkeypatch):
    def download(*_):
        raise AssertionError("a look must not download")

    monkeypatch.setattr("sdvq_core.diffusion.hub._download", download)
    monkeypatch.setattr("sdvq_core.diffusion.hub.reachable", lambda: True)
    assert workbench.report("sdxl", "rvq:bits=3") is None
    assert workbench.report("sdxl", "aq:bits=2.6") is None
    assert workbench.estimate("sdxl", "rvq:bits=3").ledger.weights == 2_567_463_684


@pytest.mark.parametrize("arms", [ARMS, pytest.param(("fp16", "tcq:bits=3", "rvq:bits=3"), marks=pytest.mark.slow)])
def test_both_modes_draw_the_same_to_the_bit_and_say_which_they_are(model, tmp_path, arms):
    found = {}
    for mode in ("resident", "streaming"):
        workbench = Workbench(tmp_path / "data", "cpu", mode=mode)
        _, results = _compare(workbench, model, arms)
        found[mode] = workbench, results
        assert [result.footprint.mode for result in results] == ["resident", mode, mode]
        assert [result.to_json()["mode"] for result in results] == ["resident", mode, mode]
    for word in arms:
        one, two = (
            list(sample(workbench.engine.base(model), workbench.engine.unet(model, parse_arm(word)), SAMPLING))[-1]
            for workbench, _ in found.values()
        )
        assert torch.equal(one.latents, two.latents), word
    for once, every in zip(*(results for _, results in found.values()), strict=True):
        assert once.path.read_bytes() == every.path.read_bytes()
        memory = once.to_json()["memory"]
        assert memory["weights"] - memory["decoded"] == every.to_json()["memory"]["weights"]


def memory_notices(events: list) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice) and "memory" in event.text]


def test_without_room_auto_is_streaming_and_nobody_is_bothered(workbench, model, monkeypatch):
    monkeypatch.setattr(modes, "free_nbytes", lambda device: 1000)
    events, (_, arm) = _compare(workbench, model, ARMS[:2])
    assert arm.footprint.mode == "streaming"
    assert memory_notices(events) == []


@pytest.mark.parametrize("mode", ["auto", "resident"])
def test_out_of_memory_is_one_notice_and_an_image(model, tmp_path, monkeypatch, mode):
    _, (_, wanted) = _compare(Workbench(tmp_path / "data", "cpu"), model, ARMS[:2])
    workbench, decode, broken = Workbench(tmp_path / "data", "cpu", mode=mode), QuantizedLayer._decode, [True]

    def fail_once(*words):
        if broken:
            broken.clear()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return decode(*words)

    monkeypatch.setattr(QuantizedLayer, "_decode", fail_once)
    events, (_, arm) = _compare(workbench, model, ARMS[:2])
    again, _ = _compare(workbench, model, ARMS[:2], replace(SAMPLING, seed=4))
    (notice,) = memory_notices([*events, *again])
    assert notice.startswith("rtn:bits=4: memory ran out")
    assert "Tried to allocate 2.00 GiB" in notice
    assert arm.footprint.mode == "streaming"
    assert arm.path.read_bytes() == wanted.path.read_bytes()


def test_the_eldest_unet_goes_before_the_next_is_loaded(workbench, model, monkeypatch):
    monkeypatch.setattr(engine_room, "_UNETS", 1)
    held = []
    make_ready = engine_room.make_ready
    monkeypatch.setattr(
        engine_room, "make_ready", lambda *words: (held.append(len(workbench.engine._unets)), make_ready(*words))[1]
    )
    _compare(workbench, model, ("fp16", "rtn:bits=4", "rtn:bits=3"))
    assert held == [0, 0]


def test_a_mode_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="mode must be one of auto, resident, streaming, got 'fast'"):
        Workbench(tmp_path, "cpu", mode="fast")
