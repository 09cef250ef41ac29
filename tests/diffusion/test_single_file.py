"""Single files in the original SDXL layout: both directions of the mapping, against diffusers' own converter."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sdvq_core.diffusion.base_model import load_base, unet_config, unet_skeleton
from sdvq_core.diffusion.components import part_of_file, part_of_folder, specs_of_file, write_part, write_single_file
from sdvq_core.diffusion.fingerprint import fingerprint, translate, unet_tensors
from sdvq_core.diffusion.folders import WEIGHTED
from sdvq_core.diffusion.original_layout import placed
from sdvq_core.diffusion.quiet import quiet
from sdvq_core.diffusion.sampling import sample
from sdvq_core.diffusion.sdxl_config import refiner_unet_config, sdxl_unet_config
from sdvq_core.diffusion.sources import find_source, nano_folder, sdxl_folder
from sdvq_core.errors import ModelError
from sdvq_core.jobs import Sampling

NANO = Path(__file__).resolve().parents[2] / "assets" / "nano"
CONFIGS = {
    "sdxl": sdxl_unet_config(128),
    "refiner": refiner_unet_config(),
    "nano": json.loads((NANO / "unet" / "config.json").read_text()),
}


def single_file(folder: Path, path: Path, **metadata: str) -> Path:
    """The pipeline in `folder` as one file."""
    with ExitStack() as stack:
        parts = {part: part_of_folder(folder / part, stack) for part in WEIGHTED}
        for _ in write_single_file(path, parts, metadata=metadata):
            pass
    return path


@pytest.fixture(scope="module")
def nano_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return single_file(nano_folder(), tmp_path_factory.mktemp("files") / "nano.safetensors")


@pytest.fixture(scope="module")
def tiny_file(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return single_file(tiny_pipeline_folder, tmp_path_factory.mktemp("files") / "tiny.safetensors")


def same(first: nn.Module, second: nn.Module) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("name", list(CONFIGS))
def test_diffusers_reads_our_unet_names_back(name: str) -> None:
    config = CONFIGS[name]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    places = placed("unet", unet.state_dict(), config)
    back = convert_ldm_unet_checkpoint({stored: pieces[0][0] for stored, pieces in places.items()}, unet.config)
    assert back == {key: key for key in unet.state_dict()}
    assert translate(list(places)) == {stored: pieces[0][0] for stored, pieces in places.items()}


@pytest.mark.parametrize("folder", [NANO, sdxl_folder()], ids=lambda folder: folder.name)
def test_diffusers_reads_our_vae_names_and_shapes_back(folder: Path) -> None:
    config = json.loads((folder / "vae" / "config.json").read_text())
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(config)
        state = vae.state_dict()
    names = list(state)
    stored = {}
    for key, ((name, place),) in placed("vae", names, config).items():
        stored[key] = torch.tensor(names.index(name)).expand(place.stored_shape(state[name].shape))
    back = convert_ldm_vae_checkpoint(stored, vae.config)
    assert {name: tensor.shape for name, tensor in back.items()} == {name: t.shape for name, t in state.items()}
    assert {name: int(tensor.max()) for name, tensor in back.items()} == {name: i for i, name in enumerate(names)}


def test_the_assets_hold_sdxl() -> None:
    assert json.loads((sdxl_folder() / "unet" / "config.json").read_text()) == sdxl_unet_config(128)
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(json.loads((sdxl_folder() / "vae" / "config.json").read_text()))
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863


@pytest.mark.parametrize(("name", "padding"), [("tokenizer", 49407), ("tokenizer_2", 0)])
def test_the_tokenizers_are_clips(name: str, padding: int) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(sdxl_folder() / name)
    words = tokenizer("a photo of an astronaut riding a horse on mars", padding="max_length", max_length=14).input_ids
    assert words == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407, padding, padding]
    assert (len(tokenizer), tokenizer.model_max_length) == (49408, 77)


def test_diffusers_loads_our_single_file_as_the_folder(tiny_pipeline_folder: Path, tiny_file: Path) -> None:
    with quiet():
        theirs = StableDiffusionXLPipeline.from_single_file(
            str(tiny_file), config=str(tiny_pipeline_folder), dtype=torch.float16, local_files_only=True
        )
        folder = StableDiffusionXLPipeline.from_pretrained(tiny_pipeline_folder, dtype=torch.float16)
    for part in WEIGHTED:
        same(getattr(theirs, part), getattr(folder, part))


@pytest.mark.usefixtures("no_network")
def test_a_single_file_is_loaded_as_its_folder(nano_file: Path) -> None:
    base, folder = load_base(find_source(str(nano_file)), "cpu"), load_base(find_source("nano"), "cpu")
    for part in WEIGHTED:
        same(getattr(base.pipe, part), getattr(folder.pipe, part))
    assert base.fingerprint == folder.fingerprint
    sampling = Sampling("a red apple", 3, 2, 4.0)
    ours, theirs = (list(sample(item, item.unet, sampling))[-1].latents for item in (base, folder))
    assert torch.equal(ours, theirs)


def test_the_fingerprint_is_the_same_in_every_layout(nano_file: Path, tmp_path: Path) -> None:
    expected = fingerprint(NANO / "unet")
    assert fingerprint(find_source(str(nano_file))) == expected
    with ExitStack() as stack:
        part = part_of_folder(NANO / "unet", stack)
        list(write_part(tmp_path / "whole", part, "diffusion_pytorch_model"))
        list(write_part(tmp_path / "shards", part, "diffusion_pytorch_model", 3_000_000, "fp16"))
    assert len(list((tmp_path / "shards").glob("*.fp16-*.safetensors"))) > 5
    for folder in ("whole", "shards"):
        assert fingerprint(tmp_path / folder) == expected
        with quiet():
            variant = "fp16" if folder == "shards" else None
            unet = UNet2DConditionModel.from_pretrained(tmp_path / folder, variant=variant, dtype=torch.float16)
        same(unet, UNet2DConditionModel.from_pretrained(NANO / "unet", dtype=torch.float16))


def test_tensors_are_found_by_diffusers_names(nano_file: Path) -> None:
    found = unet_tensors(find_source(str(nano_file)))
    assert set(found) == set(unet_tensors(NANO / "unet")) == set(unet_skeleton(find_source("nano")).state_dict())
    assert found["conv_in.weight"] == (nano_file, "model.diffusion_model.input_blocks.0.0.weight")


def test_parts_of_a_file_are_those_of_its_folder(nano_file: Path) -> None:
    with ExitStack() as stack:
        for component in WEIGHTED:
            folder = part_of_folder(NANO / component, stack)
            file = part_of_file(component, list(folder.specs), folder.config, nano_file, stack)
            assert file.specs == folder.specs
            assert all(torch.equal(file.read(name), folder.read(name)) for name in folder.specs)


def test_a_dtype_that_torch_lacks_is_named(tmp_path: Path) -> None:
    head = json.dumps({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"\0")
    with pytest.raises(ModelError, match="stores x as F4; files of U64, I64"):
        specs_of_file(tmp_path / "x.safetensors")


def test_a_part_may_be_cast(tiny_pipeline_folder: Path) -> None:
    with ExitStack() as stack:
        part = part_of_folder(tiny_pipeline_folder / "unet", stack)
        cast = part.to(torch.bfloat16)
        assert cast.nbytes == part.nbytes
        assert cast.specs["conv_in.bias"] == (torch.bfloat16, (24,))
        assert torch.equal(cast.read("conv_in.bias"), part.read("conv_in.bias").to(torch.bfloat16))


def test_the_config_of_a_file_is_its_own_size(nano_file: Path) -> None:
    source = find_source(str(nano_file))
    assert (source.tier, source.steps, source.resolution) == ("nano", 20, 64)
    assert unet_config(source) == CONFIGS["nano"]


def changed(path: Path, target: Path, change: dict[str, Tensor | None]) -> Path:
    tensors: dict[str, Any] = load_file(path) | change
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, target)
    return target


@pytest.mark.parametrize(
    "name",
    [
        "first_stage_model.decoder.conv_out.bias",
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_bias",
    ],
)
def test_a_missing_tensor_is_named(nano_file: Path, tmp_path: Path, name: str) -> None:
    path = changed(nano_file, tmp_path / "x.safetensors", {name: None})
    with pytest.raises(ModelError, match=f"lacks the tensor {name}"):
        load_base(find_source(str(path)), "cpu")


@pytest.mark.parametrize("value", [None, torch.zeros(7)])
def test_a_wrong_unet_tensor_is_named(nano_file: Path, tmp_path: Path, value: Tensor | None) -> None:
    change = {"model.diffusion_model.middle_block.0.in_layers.0.bias": value}
    path = changed(nano_file, tmp_path / "x.safetensors", change)
    with pytest.raises(ModelError, match=r"mid_block.resnets.0.norm1.bias is (nothing|\[7\]) in the file and \[192\]"):
        load_base(find_source(str(path)), "cpu")


def test_a_wrong_shape_beside_the_unet_is_one_sentence(nano_file: Path, tmp_path: Path) -> None:
    path = changed(nano_file, tmp_path / "x.safetensors", {"first_stage_model.decoder.conv_out.bias": torch.zeros(9)})
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(find_source(str(path)), "cpu")


def test_loading_does_not_depend_on_the_file_any_more(nano_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(nano_file, tmp_path / "gone.safetensors"))
    base = load_base(find_source(str(path)), "cpu")
    path.write_bytes(b"")
    assert torch.isfinite(base.unet.conv_in.weight).all()
