"""The fingerprint depends on the UNet's content alone: not on shards, file names or the naming of its tensors."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdvq_core.diffusion import fingerprint as module
from sdvq_core.diffusion.base_model import BaseModel, unet_skeleton
from sdvq_core.diffusion.fingerprint import fingerprint, surroundings, translate
from sdvq_core.diffusion.sources import SDXL, find_source
from sdvq_core.errors import ModelError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_known", {})


def test_it_is_sixteen_hex_digits(tiny_pipeline_folder: Path) -> None:
    assert re.fullmatch("[0-9a-f]{16}", fingerprint(tiny_pipeline_folder / "unet"))


def test_source_and_unet_folder_agree(tiny_pipeline_folder: Path, tiny_base: BaseModel) -> None:
    assert fingerprint(find_source(str(tiny_pipeline_folder))) == fingerprint(tiny_pipeline_folder / "unet")
    assert tiny_base.fingerprint == fingerprint(str(tiny_pipeline_folder / "unet"))


def test_shards_do_not_matter(tiny_pipeline_folder: Path, tiny_base: BaseModel, tmp_path: Path) -> None:
    half = type(tiny_base.unet).from_pretrained(tiny_pipeline_folder, subfolder="unet", dtype=torch.float16)
    half.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert fingerprint(tmp_path) == tiny_base.fingerprint


@pytest.mark.parametrize("change", ["value", "name", "dtype", "shape"])
def test_any_change_of_content_changes_it(change: str, tmp_path: Path) -> None:
    tensor, name = torch.arange(6.0), "x"
    save_file({name: tensor}, tmp_path / WEIGHTS)
    before = fingerprint(tmp_path)
    changed = {"value": tensor + 1, "name": tensor, "dtype": tensor.view(torch.int32), "shape": tensor.view(2, 3)}
    save_file({"y" if change == "name" else name: changed[change]}, tmp_path / WEIGHTS)
    assert fingerprint(tmp_path) != before


def test_every_sdxl_name_is_translated() -> None:
    names = set(unet_skeleton(SDXL).state_dict())
    stored = translate([ldm_name(name) for name in names])
    assert stored == {ldm_name(name): name for name in names}


@pytest.mark.usefixtures("forgetful")
def test_it_is_remembered_below_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"x": torch.ones(3)}, tmp_path / WEIGHTS)
    before = fingerprint(tmp_path, tmp_path / "data")
    assert list(json.loads((tmp_path / "data" / module.CACHE_NAME).read_text()).values()) == [before]
    module._known.clear()
    monkeypatch.setattr(module, "_digest", pytest.fail)
    assert fingerprint(tmp_path, tmp_path / "data") == before


@pytest.mark.usefixtures("forgetful")
def test_a_damaged_memory_is_forgotten(tmp_path: Path) -> None:
    save_file({"x": torch.ones(3)}, tmp_path / WEIGHTS)
    before = fingerprint(tmp_path, tmp_path)
    (tmp_path / module.CACHE_NAME).write_text("{")
    module._known.clear()
    assert fingerprint(tmp_path, tmp_path) == before


def test_a_truncated_file_is_refused(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    raw = (tiny_pipeline_folder / "unet" / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ModelError, match="damaged"):
        fingerprint(tmp_path)


def test_half_precision_and_scalars_are_read(tmp_path: Path) -> None:
    save_file({"x": torch.ones(3, dtype=torch.bfloat16), "s": torch.tensor(1.0)}, tmp_path / WEIGHTS)
    assert load_file(tmp_path / WEIGHTS)["s"].ndim == 0
    assert fingerprint(tmp_path)


FIXED = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def ldm_name(name: str) -> str:
    """The name of an SDXL UNet tensor in Stability's single-file checkpoints."""
    layer, kind = name.rsplit(".", 1)
    return f"model.diffusion_model.{FIXED.get(layer) or _block_name(layer)}.{kind}"


def _block_name(layer: str) -> str:
    side, *rest = layer.split(".")
    if side == "mid_block":
        part, index, inner = rest[0], int(rest[1]), ".".join(rest[2:])
        return f"middle_block.1.{inner}" if part == "attentions" else f"middle_block.{2 * index}.{RESNET[inner]}"
    block, part, index, inner = int(rest[0]), rest[1], int(rest[2]), ".".join(rest[3:])
    if part == "downsamplers":
        return f"input_blocks.{3 * block + 3}.0.op"
    if part == "upsamplers":
        return f"output_blocks.{3 * block + 2}.2.conv"
    start = f"input_blocks.{3 * block + index + 1}" if side == "down_blocks" else f"output_blocks.{3 * block + index}"
    return f"{start}.1.{inner}" if part == "attentions" else f"{start}.0.{RESNET[inner]}"


def test_surroundings_follow_every_part_but_the_unet(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "copy"))
    before = surroundings(find_source(str(folder)))
    os.utime(folder / "unet" / "config.json", (1, 1))
    (folder / "README.md").write_text("hello")
    assert surroundings(find_source(str(folder))) == before
    os.utime(next((folder / "vae").glob("*.safetensors")), (1, 1))
    assert surroundings(find_source(str(folder))) != before
