"""What a user can name, and one sentence for everything else."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdvq_core.diffusion import recognition, sources
from sdvq_core.diffusion.base_model import check_files, load_base, unet_config
from sdvq_core.diffusion.fingerprint import fingerprint
from sdvq_core.diffusion.habits import HABITS
from sdvq_core.diffusion.listing import about_model, known_models
from sdvq_core.diffusion.sources import cached_folder, find_source
from sdvq_core.errors import ModelError
from sdvq_core.store.tensor_file import WORDS


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
    ancestral, own = {"_class_name": "EulerAncestralDiscreteScheduler"}, find_source(str(copy)).steps
    edit(copy / "scheduler" / "scheduler_config.json", **ancestral, timestep_spacing="leading")
    assert find_source(str(copy)).steps == own, "many models of thirty steps come with it"
    edit(copy / "scheduler" / "scheduler_config.json", **ancestral, timestep_spacing="trailing")
    assert (find_source(str(copy)).steps, find_source(str(copy)).guidance) == (2, 0)


@pytest.mark.parametrize(
    ("name", "habits"), [("sd_xl_turbo", "turbo"), ("DreamXL-Lightning", "lightning"), ("xl", "base")]
)
def test_a_folder_and_a_hub_model_are_told_by_their_names_like_a_file(copy: Path, name: str, habits: str) -> None:
    edit(copy / "unet" / "config.json", block_out_channels=[320, 640, 1280])
    folder, wanted = find_source(str(copy.rename(copy.with_name(name)))), HABITS[habits]
    assert (folder.steps, folder.guidance, folder.resolution) == (wanted.steps, wanted.guidance, 32)
    hub = find_source(f"someone/{name}")
    assert (hub.steps, hub.guidance, hub.resolution) == (wanted.steps, wanted.guidance, wanted.resolution)


def checkpoint(path: Path, conv: tuple[int, int, int] = (320, 4, 4), **changes: torch.Tensor | None) -> Path:
    """A file with the tensors that tell what it is; conv: the UNet's width, channels in and out."""
    width, channels_in, channels_out = conv
    tensors = {
        recognition.LDM_CONV_IN: torch.zeros(width, channels_in, 3, 3),
        recognition.LDM_CONV_OUT: torch.zeros(channels_out, width, 3, 3),
        recognition.LDM_ADDED: torch.zeros(2, 2),
        f"{recognition.TEXT_1}x": torch.zeros(1),
        f"{recognition.TEXT_2}x": torch.zeros(1),
        f"{recognition.VAE}x": torch.zeros(1),
        **changes,
    }
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return path


def test_a_single_file_is_a_model(tmp_path: Path) -> None:
    source = find_source(str(checkpoint(tmp_path / "mine.safetensors")))
    assert (source.kind, source.label, source.resolution, source.no_image) == ("file", "mine", 1024, "")
    assert Path(source.skeleton) == sources.sdxl_folder()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model.diffusion_model.joint_blocks.0.x": torch.zeros(1)}, "is a Stable Diffusion 3 checkpoint"),
        ({"double_blocks.0.img_attn.qkv.weight": torch.zeros(1)}, "is a Flux checkpoint"),
        ({"cond_stage_model.model.x": torch.zeros(1)}, "is a Stable Diffusion 2 checkpoint"),
        ({"cond_stage_model.transformer.x": torch.zeros(1)}, "is a Stable Diffusion 1 checkpoint"),
        ({"lora_unet_x.lora_up.weight": torch.zeros(1)}, "is a LoRA"),
        ({"control_model.x": torch.zeros(1)}, "is a ControlNet"),
        ({"down_blocks.0.resnets.0.conv1.codes": torch.zeros(1)}, "is an SDVQ artifact's weights, whose folder"),
        ({recognition.LDM_ADDED: None}, "is a UNet of Stable Diffusion 1 or 2"),
        ({recognition.LDM_CONV_IN: None}, "is not an SDXL checkpoint"),
        ({recognition.LDM_CONV_IN: torch.zeros(())}, "is not an SDXL checkpoint"),
    ],
)
def test_other_models_are_named(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    message = refused(checkpoint(tmp_path / "x.safetensors", **changes))
    assert sentence in message
    assert "SDVQ reads SDXL-family checkpoints" in message


def test_a_unet_of_another_width_is_to_be_a_folder(tmp_path: Path) -> None:
    assert "128 wide where SDXL's is 320; pass it as a" in refused(checkpoint(tmp_path / "x.safetensors", (128, 4, 4)))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_quantized_weights_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    path = checkpoint(tmp_path / "x.safetensors", **{f"{recognition.LDM_UNET}y": torch.zeros(2).to(dtype)})
    assert f"stores model.diffusion_model.y as {WORDS[dtype]}; SDVQ compresses original weights" in refused(path)


@pytest.mark.parametrize(
    ("conv", "changes", "reason"),
    [
        ((320, 9, 4), {}, "an inpainting UNet (9 channels in, 4 out)"),
        ((320, 8, 4), {}, "an image-editing UNet"),
        ((320, 5, 4), {}, "a UNet for other inputs"),
        ((384, 4, 4), {f"{recognition.REFINER_TEXT}x": torch.zeros(1)}, "it is a refiner"),
        ((320, 4, 4), {f"{recognition.TEXT_2}x": None}, "a UNet without text encoders"),
        (
            (320, 4, 4),
            {f"{recognition.TEXT_2}x": None, f"{recognition.VAE}x": None},
            "a UNet without text encoders and VAE",
        ),
    ],
)
def test_what_draws_no_image_can_be_named_and_says_why(
    tmp_path: Path, conv: tuple[int, int, int], changes: dict[str, Any], reason: str
) -> None:
    source = find_source(str(checkpoint(tmp_path / "x.safetensors", conv, **changes)))
    assert reason in source.no_image
    config = unet_config(source)
    assert (config["block_out_channels"][0], config["in_channels"]) == conv[:2]
    with pytest.raises(ModelError, match="no image can be drawn with"):
        load_base(source, "cpu")


@pytest.mark.parametrize(
    ("name", "metadata", "habits"),
    [
        ("juggernautXL_v9", {}, "base"),
        ("sd_xl_turbo_1.0_fp16", {}, "turbo"),
        ("SDXL-Turbo", {}, "turbo"),
        ("DreamShaperXL_Turbo", {}, "lightning"),
        ("sdxl_lightning_4step", {}, "lightning"),
        ("x", {"modelspec.title": "SDXL Turbo"}, "turbo"),
        ("x@turbo", {}, "turbo"),
        ("sd_xl_turbo@base", {}, "base"),
    ],
)
def test_habits_of_a_file(tmp_path: Path, name: str, metadata: dict[str, str], habits: str) -> None:
    stem, at, word = name.partition("@")
    path = checkpoint(tmp_path / f"{stem}.safetensors")
    save_file(load_file(path), path, metadata)
    source, wanted = find_source(f"{path}{at}{word}"), HABITS[habits]
    assert (source.steps, source.guidance, source.resolution) == (wanted.steps, wanted.guidance, wanted.resolution)
    assert source.scheduler == wanted.scheduler


def test_metadata_and_markers_are_honoured(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "x.safetensors", v_pred=torch.zeros(0), ztsnr=torch.zeros(0))
    save_file(load_file(path), path, {"modelspec.resolution": "768x768"})
    source = find_source(str(path))
    assert source.resolution == 768
    assert {("prediction_type", "v_prediction"), ("rescale_betas_zero_snr", True)} <= set(source.scheduler)


def test_other_habits_are_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "x.safetensors")
    assert "after the @ of a file stands base, turbo, lightning" in refused(f"{path}@fast")


def test_owner_and_name_are_a_hub_id() -> None:
    source = find_source("someone/some-xl.v2")
    assert (source.kind, source.location, source.revision) == ("hub", "someone/some-xl.v2", None)


@pytest.mark.parametrize("revision", ["main", "refs/pr/3", "462165984030d82259a11f4367a4eed129e94a7b"])
def test_a_hub_id_may_carry_a_revision(revision: str) -> None:
    source = find_source(f"someone/some-xl@{revision}")
    assert (source.kind, source.location, source.revision) == ("hub", "someone/some-xl", revision)


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


@pytest.mark.parametrize("nested", [True, False])
def test_the_command_converts_a_pickle(tmp_path: Path, nested: bool) -> None:
    tensors = {"x": torch.arange(6.0).reshape(2, 3).T, "y": torch.zeros(1, dtype=torch.float16)}
    tensors["tied"] = tensors["y"]
    torch.save({"state_dict": tensors, "epoch": 3} if nested else tensors, tmp_path / "it's mine.ckpt")
    command = refused(tmp_path / "it's mine.ckpt").partition("in its folder run ")[2]
    subprocess.run(shlex.split(command.replace("python", sys.executable, 1)), cwd=tmp_path, check=True)
    found = load_file(tmp_path / "it's mine.safetensors")
    assert set(found) == {"x", "y", "tied"}
    assert torch.equal(found["x"], tensors["x"])


def test_the_command_gives_a_text_encoder_the_name_that_is_looked_for(copy: Path) -> None:
    folder = copy / "text_encoder"
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    command = refused(copy).partition("in its folder run ")[2]
    subprocess.run(shlex.split(command.replace("python", sys.executable, 1)), cwd=folder, check=True)
    load_base(find_source(str(copy)), "cpu")


def test_a_missing_checkpoint_does_not_exist(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "model.safetensors")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("GGUF")
    assert "not a .safetensors file" in refused(tmp_path / "model.gguf")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    save_file({"decoder.conv_in.weight": torch.zeros(2)}, tmp_path / "vae.safetensors")
    assert "is not an SDXL checkpoint (it lacks model.diffusion_model.*)" in refused(tmp_path / "vae.safetensors")


@pytest.mark.parametrize("damage", [lambda raw: raw[:-3], lambda raw: raw[:5], lambda raw: b"junk" * 40, lambda _: b""])
def test_a_damaged_file_is_told_from_a_foreign_one(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "cut.safetensors"
    save_file({f"{recognition.LDM_UNET}x": torch.zeros(9)}, path)
    path.write_bytes(damage(path.read_bytes()))
    assert "damaged" in refused(path)


def test_a_folder_without_model_index(tmp_path: Path) -> None:
    assert "no model_index.json" in refused(tmp_path)


def test_a_unet_folder_alone_draws_no_image(tiny_pipeline_folder: Path) -> None:
    source = find_source(str(tiny_pipeline_folder / "unet"))
    assert "pass the pipeline folder around it" in source.no_image
    assert fingerprint(source) == fingerprint(find_source(str(tiny_pipeline_folder)))
    assert unet_config(source) == unet_config(find_source(str(tiny_pipeline_folder)))
    check_files(source)


def test_a_folder_of_another_class_is_named(copy: Path) -> None:
    edit(copy / "model_index.json", _class_name="StableDiffusionPipeline")
    assert "is a StableDiffusionPipeline; SDVQ reads SDXL-family pipelines" in refused(copy)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_broken_json_is_named(copy: Path, text: str) -> None:
    (copy / "model_index.json").write_bytes(text.encode("latin-1"))
    assert "model_index.json" in refused(copy)


def test_a_refiner_draws_no_image(copy: Path) -> None:
    edit(copy / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    source = find_source(str(copy))
    assert source.no_image == "it has no text_encoder and no tokenizer, like SDXL's refiner"
    check_files(source)


def test_an_inpainting_folder_draws_no_image(copy: Path) -> None:
    edit(copy / "model_index.json", _class_name="StableDiffusionXLInpaintPipeline")
    edit(copy / "unet" / "config.json", in_channels=9)
    assert find_source(str(copy)).no_image == "it is an inpainting UNet (9 channels in, 4 out)"


def test_a_folder_without_unet_is_incomplete(copy: Path) -> None:
    edit(copy / "model_index.json", unet=[None, None])
    assert "has no unet" in refused(copy)


@pytest.mark.parametrize("part", ["tokenizer_2", "scheduler"])
def test_a_folder_without_a_small_part_is_incomplete(copy: Path, part: str) -> None:
    shutil.rmtree(copy / part)
    assert f"{part}" in refused(copy)


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
    monkeypatch.setattr(sources, "try_to_load_from_cache", lambda *_, **__: None)
    assert [(info.name, info.at_hand) for info in known_models()] == [
        ("nano", True),
        ("sdxl", False),
        ("sdxl-turbo", False),
    ]


def test_the_licence_of_a_folder_is_on_its_card(copy: Path) -> None:
    assert about_model(str(copy)).licence == ""
    card = "---\nlicense: other\nlicense_name: sai-nc\nlicense_link: LICENSE.md\n---\n# A model\n"
    (copy / "README.md").write_text(card)
    assert about_model(str(copy)).licence == "sai-nc LICENSE.md"
    assert "pass the pipeline folder" in about_model(str(copy / "unet")).note


def test_known_models_without_nano(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SDVQ_NANO", str(tmp_path / "gone"))
    assert not known_models()[0].at_hand


def test_the_hub_cache_counts_only_when_complete(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "try_to_load_from_cache", lambda *_, **__: str(copy / "model_index.json"))
    assert cached_folder("owner/name") == copy
    shutil.rmtree(copy / "text_encoder_2")
    assert cached_folder("owner/name") is None


def test_an_id_that_the_hub_refuses_is_not_cached() -> None:
    assert cached_folder("a--b/c..d") is None
