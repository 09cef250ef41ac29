"""What a user can name, and one sentence for everything else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdvq_core.diffusion import sources
from sdvq_core.diffusion.sources import cached_folder, find_source, known_models
from sdvq_core.errors import ModelError


@pytest.fixture
def copy(tiny_pipeline_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "copy"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(name: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        find_source(str(name))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_nano_is_where_sdvq_nano_says(tiny_pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDVQ_NANO", str(tiny_pipeline_folder))
    source = find_source("nano")
    assert (source.name, source.kind, source.location) == ("nano", "folder", str(tiny_pipeline_folder))
    assert (source.tier, source.resolution) == ("nano", 32)


def test_nano_lies_in_the_assets_of_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDVQ_NANO", raising=False)
    assert sources.nano_folder() == Path(__file__).resolve().parents[2] / "assets" / "nano"


def test_missing_nano_says_where_it_was_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SDVQ_NANO", str(tmp_path / "gone"))
    assert "gone" in refused("nano")


@pytest.mark.parametrize(("name", "steps", "guidance", "pixels"), [("sdxl", 30, 5, 1024), ("sdxl-turbo", 2, 0, 512)])
def test_presets_carry_their_habits(name: str, steps: int, guidance: float, pixels: int) -> None:
    source = find_source(name)
    assert (source.kind, source.tier) == ("hub", "sdxl")
    assert (source.steps, source.guidance, source.resolution) == (steps, guidance, pixels)


def test_a_folder_is_a_model(tiny_pipeline_folder: Path) -> None:
    source = find_source(str(tiny_pipeline_folder))
    assert (source.kind, source.label, source.resolution) == ("folder", "tiny", 32)


def test_a_folder_with_turbos_scheduler_is_sampled_like_turbo(copy: Path) -> None:
    edit(copy / "scheduler" / "scheduler_config.json", _class_name="EulerAncestralDiscreteScheduler")
    assert (find_source(str(copy)).steps, find_source(str(copy)).guidance) == (2, 0)


def test_a_single_file_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file({f"{sources.LDM_UNET}out.2.bias": torch.zeros(4), f"{sources.LDM_TEXT}x": torch.zeros(1)}, path)
    source = find_source(str(path))
    assert (source.kind, source.label, source.resolution) == ("file", "mine", 1024)


def test_owner_and_name_are_a_hub_id() -> None:
    source = find_source("someone/some-xl.v2")
    assert (source.kind, source.location) == ("hub", "someone/some-xl.v2")


@pytest.mark.parametrize(
    "name",
    ["", "no such thing", "nanoo", "/no/such/folder", "./model", "~/model", "a/b/c", "x" * 5000, "~nobody-here/x"],
)
def test_what_names_nothing_is_told_what_would(name: str) -> None:
    assert "nano, sdxl, sdxl-turbo, a diffusers pipeline folder" in refused(name)


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".pth"])
@pytest.mark.parametrize("exists", [True, False])
def test_pickles_are_refused(tmp_path: Path, suffix: str, exists: bool) -> None:
    path = tmp_path / f"model{suffix}"
    if exists:
        path.write_bytes(b"\x80\x04.")
    assert "convert it to safetensors first" in refused(path)


def test_a_missing_checkpoint_does_not_exist(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "model.safetensors")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("GGUF")
    assert "not a .safetensors file" in refused(tmp_path / "model.gguf")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    save_file({"lora_up.weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    assert "not a full SDXL checkpoint" in refused(tmp_path / "lora.safetensors")


@pytest.mark.parametrize("damage", [lambda raw: raw[:-3], lambda raw: raw[:5], lambda raw: b"junk" * 40, lambda _: b""])
def test_a_damaged_file_is_told_from_a_foreign_one(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "cut.safetensors"
    save_file({f"{sources.LDM_UNET}x": torch.zeros(9)}, path)
    path.write_bytes(damage(path.read_bytes()))
    assert "damaged" in refused(path)


def test_a_folder_without_model_index(tmp_path: Path) -> None:
    assert "no model_index.json" in refused(tmp_path)


def test_a_component_folder_is_recognised(tiny_pipeline_folder: Path) -> None:
    assert "pass the pipeline folder around it" in refused(tiny_pipeline_folder / "unet")


def test_a_folder_of_another_class_is_named(copy: Path) -> None:
    edit(copy / "model_index.json", _class_name="StableDiffusionPipeline")
    assert "is a StableDiffusionPipeline; SDVQ reads SDXL-family pipelines" in refused(copy)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_broken_json_is_named(copy: Path, text: str) -> None:
    (copy / "model_index.json").write_bytes(text.encode("latin-1"))
    assert "model_index.json" in refused(copy)


def test_a_refiner_is_refused(copy: Path) -> None:
    edit(copy / "model_index.json", text_encoder=[None, None])
    assert "has no text_encoder" in refused(copy)


def test_a_folder_of_pickles_is_refused(copy: Path) -> None:
    for path in (copy / "unet").glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    assert "convert it to safetensors first" in refused(copy)


def test_a_folder_without_weights_is_incomplete(copy: Path) -> None:
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert "holds no safetensors weights" in refused(copy)


def test_a_missing_config_is_named(copy: Path) -> None:
    (copy / "unet" / "config.json").unlink()
    assert "config.json is missing" in refused(copy)


def test_a_missing_shard_is_named(copy: Path) -> None:
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    index = {"weight_map": {"conv_in.weight": "part-1.safetensors"}}
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert "part-1.safetensors is missing" in refused(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"block_out_channels": None},
        {"addition_embed_type": None},
        {"in_channels": 9},
        {"time_cond_proj_dim": 256},
        {"encoder_hid_dim_type": "x"},
    ],
)
def test_a_unet_of_another_design_is_refused(copy: Path, change: dict[str, object]) -> None:
    edit(copy / "unet" / "config.json", **change)
    assert "is not SDXL's" in refused(copy)


def test_a_quantized_unet_is_no_base(copy: Path) -> None:
    edit(copy / "unet" / "config.json", quantization_config={"quant_method": "sdvq"})
    assert "quantized already (sdvq)" in refused(copy)


def test_known_models_say_what_is_at_hand(tiny_pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDVQ_NANO", str(tiny_pipeline_folder))
    monkeypatch.setattr(sources, "try_to_load_from_cache", lambda *_: None)
    assert [(info.name, info.at_hand) for info in known_models()] == [
        ("nano", True),
        ("sdxl", False),
        ("sdxl-turbo", False),
    ]


def test_known_models_without_nano(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SDVQ_NANO", str(tmp_path / "gone"))
    assert not known_models()[0].at_hand


def test_the_hub_cache_counts_only_when_complete(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "try_to_load_from_cache", lambda *_: str(copy / "model_index.json"))
    assert cached_folder("owner/name") == copy
    shutil.rmtree(copy / "text_encoder_2")
    assert cached_folder("owner/name") is None


def test_an_id_that_the_hub_refuses_is_not_cached() -> None:
    assert cached_folder("a--b/c..d") is None
