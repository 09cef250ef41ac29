"""Loading: the whole pipeline or one sentence."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdvq_core.diffusion import hub, sources
from sdvq_core.diffusion.base_model import BaseModel, load_base, pick_device, unet_config, unet_skeleton
from sdvq_core.diffusion.quiet import quiet
from sdvq_core.diffusion.sources import PRESETS, SDXL, Source, find_source
from sdvq_core.errors import ConfigError, ModelError

UNET_FILE = Path("unet") / "diffusion_pytorch_model.safetensors"
HUB = Source("owner/name", "hub", "owner/name", "owner/name", "sdxl", 30, 5.0, 1024)


@pytest.fixture
def copy(tiny_pipeline_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "copy"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_base(find_source(str(folder)), "cpu")
    return str(caught.value)


def test_cpu_means_float32_without_gradients(tiny_base: BaseModel) -> None:
    assert (tiny_base.device, tiny_base.dtype) == (torch.device("cpu"), torch.float32)
    for part in (tiny_base.unet, tiny_base.pipe.vae, tiny_base.pipe.text_encoder, tiny_base.pipe.text_encoder_2):
        assert not part.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in part.parameters())


def test_loading_is_silent(tiny_pipeline_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_base(find_source(str(tiny_pipeline_folder)), "cpu")
    assert capfd.readouterr() == ("", "")


def test_quiet_leaves_things_as_they_were() -> None:
    logger = logging.getLogger("diffusers")
    before = logger.level
    with quiet():
        assert logger.level == logging.ERROR
    assert logger.level == before


def test_the_fp16_variant_is_loaded(copy: Path, tiny_base: BaseModel) -> None:
    for part in ("unet", "vae"):
        name = "diffusion_pytorch_model"
        (copy / part / f"{name}.safetensors").rename(copy / part / f"{name}.fp16.safetensors")
    for part in ("text_encoder", "text_encoder_2"):
        (copy / part / "model.safetensors").rename(copy / part / "model.fp16.safetensors")
    assert load_base(find_source(str(copy)), "cpu").fingerprint == tiny_base.fingerprint


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"])
def test_truncated_weights_are_named(copy: Path, part: str) -> None:
    path = copy / f"{part}.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    message = refused(copy)
    assert str(path) in message
    assert "damaged" in message


def test_a_unet_that_lacks_a_tensor_is_not_filled_with_noise(copy: Path) -> None:
    tensors = load_file(copy / UNET_FILE)
    del tensors["conv_in.bias"]
    save_file(tensors, copy / UNET_FILE)
    assert "conv_in.bias" in refused(copy)


def test_a_tensor_of_another_shape_is_refused(copy: Path) -> None:
    tensors = load_file(copy / UNET_FILE)
    save_file({**tensors, "conv_in.bias": torch.zeros(7)}, copy / UNET_FILE)
    assert "conv_in.bias is [7] in the file and [24] in the configuration" in refused(copy)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_quantized_weights_in_a_folder_are_refused(copy: Path, part: str) -> None:
    path = copy / part / UNET_FILE.name
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, path)
    assert "as F8_E4M3; SDVQ compresses original weights" in refused(copy)


def test_a_broken_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer" / "tokenizer.json").write_text("{")
    assert "cannot be loaded" in refused(copy)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="auto, cpu, cuda, got 'tpu'"):
        pick_device("tpu")


def test_cuda_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="no CUDA device is available"):
        pick_device("cuda")


def test_auto_takes_cuda_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
    assert pick_device("cpu") == torch.device("cpu")


def test_the_skeleton_has_shapes_and_no_storage(tiny_base: BaseModel) -> None:
    skeleton = unet_skeleton(tiny_base.source)
    real = {name: p.shape for name, p in tiny_base.unet.named_parameters()}
    assert {name: p.shape for name, p in skeleton.named_parameters()} == real
    assert all(p.is_meta for p in skeleton.parameters())


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_can_be_estimated_without_a_download(name: str) -> None:
    assert sum(p.numel() for p in unet_skeleton(PRESETS[name]).parameters()) == 2_567_463_684
    assert unet_config(PRESETS[name])["sample_size"] * 8 == PRESETS[name].resolution


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("source", [HUB, SDXL])
def test_a_hub_model_without_network_says_what_to_use(source: Source) -> None:
    with pytest.raises(ModelError) as caught:
        load_base(source, "cpu")
    for part in (source.location, "cannot be reached", "pass a diffusers pipeline folder", "nano"):
        assert part in str(caught.value)


def test_a_cached_hub_model_needs_no_network(copy: Path, tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "try_to_load_from_cache", lambda *_, **__: str(copy / "model_index.json"))
    monkeypatch.setattr(hub, "reachable", pytest.fail)
    assert load_base(HUB, "cpu").fingerprint == tiny_base.fingerprint


def test_an_unreachable_hub_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def head(*_: object, **__: object) -> None:
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.httpx, "head", head)
    assert not hub.reachable()
    monkeypatch.setattr(hub.httpx, "head", lambda *_, **__: None)
    assert hub.reachable()
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    assert not hub.reachable()


def test_the_config_of_a_folder_is_checked_again(copy: Path) -> None:
    source = find_source(str(copy))
    config = json.loads((copy / "unet" / "config.json").read_text())
    (copy / "unet" / "config.json").write_text(json.dumps({**config, "addition_embed_type": "image"}))
    with pytest.raises(ModelError, match="is not SDXL's"):
        unet_config(source)
