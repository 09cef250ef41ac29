"""Compressed text encoders: their size stands apart, their error is measured, plain diffusers takes them."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdvq_core.arms import parse_arm
from sdvq_core.cli.making import compress
from sdvq_core.diffusion.base_model import BaseModel, load_base
from sdvq_core.diffusion.decoding import decode
from sdvq_core.diffusion.placement import TEXT
from sdvq_core.diffusion.sampling import sample
from sdvq_core.diffusion.sources import find_source
from sdvq_core.diffusion.text_encoders import load_text_encoders
from sdvq_core.errors import ConfigError, StoreError
from sdvq_core.integrations.loading import load_artifact
from sdvq_core.jobs import CompareJob, CompareResult, Notice, Progress, Sampling
from sdvq_core.nn import quantized_layers
from sdvq_core.records import TextReport
from sdvq_core.setup import Setup
from sdvq_core.text_encoders import equip, export
from sdvq_core.workbench import Workbench

SAMPLING = Sampling("a frog on a blue background", 3, 2, 4.0)


def equipped(word: str, data: Path) -> tuple[BaseModel, TextReport, int]:
    """(nano with compressed text encoders, the report, layers worked on)."""
    base = load_base(find_source("nano"), "cpu")
    *progress, report = equip(base, word, data)
    assert isinstance(report, TextReport)
    assert all(isinstance(event, Progress) for event in progress)
    return base, report, len(progress)


@pytest.mark.parametrize("word", ["rtn:bits=8", "rvq:bits=4"])
def test_every_linear_layer_is_compressed_and_the_ledger_counts_each_byte(word: str, tmp_path: Path) -> None:
    base, report, layers = equipped(word, tmp_path)
    encoders = [getattr(base.pipe, name) for name in TEXT]
    assert sum(len(list(quantized_layers(encoder))) for encoder in encoders) == layers == 2 * 18 + 1
    linears = [m for encoder in encoders for m in encoder.modules() if type(m) is torch.nn.Linear]
    assert linears == []
    assert set(report.ledgers) == set(TEXT)
    for name in TEXT:
        size = sum(path.stat().st_size for path in tmp_path.glob("text_encoders/*/*.safetensors"))
        assert report.ledgers[name].weights == sum(p.numel() for p in _original(name).parameters())
    assert sum(ledger.file_bytes for ledger in report.ledgers.values()) == size
    assert report.nbytes < 0.75 * report.fp16_bytes


def _original(name: str) -> Any:
    return getattr(load_base(find_source("nano"), "cpu").pipe, name)


def test_more_bits_change_the_text_less(tmp_path: Path) -> None:
    coarse, fine = (equipped(f"rtn:bits={bits}", tmp_path)[1] for bits in (3, 8))
    assert 0 < fine.state_error < 1e-3 < coarse.state_error
    assert 0 < fine.pooled_error < coarse.pooled_error
    assert coarse.state_cosine < fine.state_cosine < 1
    assert f"cosine {fine.state_cosine:.4f}" in fine.sentence


def test_a_second_time_they_come_from_the_disk_and_are_the_same(tmp_path: Path) -> None:
    first, report, _ = equipped("rvq:bits=4", tmp_path)
    second, again, worked = equipped("rvq:bits=4", tmp_path)
    assert worked == 0
    assert again == report
    images = [decode(base, list(sample(base, base.unet, SAMPLING))[-1].latents)[0] for base in (first, second)]
    assert images[0].tobytes() == images[1].tobytes()


def test_plain_diffusers_takes_the_folder(tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    base, _, _ = equipped("rtn:bits=8", tmp_path)
    export(base, "rtn:bits=8", tmp_path, tmp_path / "out")
    encoders = load_text_encoders(tmp_path / "out")
    pipe = StableDiffusionXLPipeline.from_pretrained(base.source.location, **encoders, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    found = pipe(
        SAMPLING.prompt, num_inference_steps=2, guidance_scale=4.0, output_type="latent",
        generator=torch.Generator("cpu").manual_seed(3),
    ).images  # fmt: skip
    assert torch.equal(found, list(sample(base, base.unet, SAMPLING))[-1].latents)


def test_a_folder_without_them_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has no compressed text_encoder; pass a folder made by"):
        load_text_encoders(tmp_path)


@pytest.mark.parametrize("word", ["15", "lib.hqq:bits=4", "rtn:bits=99", "@preview"])
def test_other_words_are_refused_with_those_that_work(word: str) -> None:
    with pytest.raises(ConfigError, match="text encoders are kept as 16 or by a quantizer such as rtn:bits=8"):
        Setup(text_encoders=word)


def test_a_comparison_says_what_they_are_and_samples_are_kept_apart(tmp_path: Path) -> None:
    job = CompareJob("nano", ("fp16", "rtn:bits=4"), SAMPLING)
    images = {}
    for word in ("16", "rtn:bits=3"):
        bench = Workbench(tmp_path, "cpu", setup=Setup(text_encoders=word))
        events = list(bench.compare(job))
        result = events[-1]
        assert isinstance(result, CompareResult)
        notices = [event.text for event in events if isinstance(event, Notice)]
        assert (result.text is None) == (word == "16")
        assert any("text encoders in rtn:bits=3" in text for text in notices) == (word != "16")
        images[word] = result.arms[0].image.tobytes()
        ledger = result.arms[1].ledger
        assert ledger == bench.estimate("nano", "rtn:bits=4").ledger  # of the UNet alone
    assert images["16"] != images["rtn:bits=3"]


def test_all_arms_share_text_encoders_and_vae(tmp_path: Path) -> None:
    """An arm costs its UNet and nothing else."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kinds, words = (AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection), ("rtn:bits=4", "rvq:bits=3")
    bench = Workbench(tmp_path, "cpu", mode="streaming")
    list(bench.compare(CompareJob("nano", ("fp16",), SAMPLING)))
    for word in words:
        list(bench.compress("nano", word))
    pipe, parts, tensors = bench.engine.base("nano").pipe, alive(kinds), stored()
    list(bench.compare(CompareJob("nano", ("fp16", *words), SAMPLING)))
    assert bench.engine.base("nano").pipe is pipe
    assert set(alive(kinds)) == set(parts)
    assert {id(pipe.vae), id(pipe.text_encoder), id(pipe.text_encoder_2)} <= set(parts)
    grown = sum(nbytes for place, nbytes in stored().items() if place not in tensors)
    unets = sum(bench.engine.footprint("nano", parse_arm(word)).nbytes for word in words)
    assert 0.9 * unets < grown < 1.1 * unets
    assert grown < sum(p.nbytes for p in pipe.vae.parameters()) + unets


def stored() -> dict[int, int]:
    """Bytes of what tensors lie in, by place; views of one place count once."""
    real = [t for t in alive((Tensor,)).values() if type(t) in (Tensor, torch.nn.Parameter) and not t.is_meta]
    places = [tensor.untyped_storage() for tensor in real]
    return {place.data_ptr(): place.nbytes() for place in places}


def alive(kinds: tuple[type, ...]) -> dict[int, Any]:
    """What lives of these classes, by identity."""
    gc.collect()
    return {id(thing): thing for thing in gc.get_objects() if issubclass(type(thing), kinds)}


def test_the_command_line_writes_and_reports_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDVQ_DATA", str(tmp_path / "data"))
    compress("nano", "rtn:bits=4", out=tmp_path / "out", text_encoders="rtn:bits=8", device="cpu", as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["text_encoders"]["nbytes"] < answer["text_encoders"]["fp16_bytes"]
    assert (
        answer["ledger"]["tensor_bytes"] == Workbench(device="cpu").estimate("nano", "rtn:bits=4").ledger.tensor_bytes
    )
    assert set(load_text_encoders(tmp_path / "out")) == set(TEXT)
    assert load_artifact(tmp_path / "out").config.in_channels == 8
