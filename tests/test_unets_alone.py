"""A UNet alone, a refiner, an inpainting model: compressed, exported, and images refused by what is missing."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from sdvq_core.cli import main
from sdvq_core.diffusion.sources import find_source
from sdvq_core.diffusion.weights import UnetWeights
from sdvq_core.integrations.loading import load_artifact

Call = Callable[..., tuple[int, str, str]]
ALONE = "it is a UNet without text encoders and VAE: pass the pipeline folder around it"
REASONS = {
    "unet": ALONE,
    "refiner": "it has no text_encoder and no tokenizer, like SDXL's refiner",
    "refiner_unet": ALONE,
    "inpainting": "it is an inpainting UNet (9 channels in, 4 out)",
    "inpainting_unet": "it is an inpainting UNet (9 channels in, 4 out)",
    "file": "it is a UNet without text encoders and VAE",
}
DRAWING = {
    "generate": ("--prompt", "a frog", "--out", "x.png"),
    "compare": ("--arm", "fp16", "--arm", "rtn", "--prompt", "a frog"),
    "evaluate": ("--arm", "fp16", "--arm", "rtn"),
    "compress": ("gptq:bits=4",),
}


@pytest.fixture(scope="module")
def models(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A path for every kind of model, all with random weights."""
    root = tmp_path_factory.mktemp("models")
    refiner = Path(shutil.copytree(tiny_pipeline_folder, root / "refiner"))
    _replace_unet(refiner, _refiner_unet())
    _edit(refiner / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(refiner / part)
    inpainting = Path(shutil.copytree(tiny_pipeline_folder, root / "inpainting"))
    config = UNet2DConditionModel.load_config(tiny_pipeline_folder / "unet")
    _replace_unet(inpainting, UNet2DConditionModel.from_config({**config, "in_channels": 9}))
    _edit(inpainting / "model_index.json", _class_name="StableDiffusionXLInpaintPipeline")
    found = {"refiner": refiner, "inpainting": inpainting}
    alone = {f"{name}_unet": folder / "unet" for name, folder in found.items()}
    return {**found, **alone, "unet": tiny_pipeline_folder / "unet", "file": root / "nano-unet.safetensors"}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """The program in this process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("SDVQ_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sdvq", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def model(request: pytest.FixtureRequest, models: dict[str, Path], call: Call) -> Path:
    """The model of the kind that the test names; a file is exported where it is not there yet."""
    path = models[request.param]
    if not path.exists():
        assert call("compress", "nano", "rtn", "--out", "nano")[0] == 0
        assert call("export", "nano", "--out", path)[0] == 0
    return path


def _refiner_unet() -> UNet2DConditionModel:
    """Four blocks, attention in the middle two, one text encoder: the refiner's build."""
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(24, 40, 72, 72),
        layers_per_block=2,
        transformer_layers_per_block=2,
        attention_head_dim=(3, 5, 9, 9),
        cross_attention_dim=16,
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=5 * 8 + 16,
    )


def _replace_unet(pipeline: Path, unet: UNet2DConditionModel) -> None:
    shutil.rmtree(pipeline / "unet")
    unet.half().save_pretrained(pipeline / "unet")


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("arm", ["rvq:bits=3,code_bits=4", "rtn:bits=4"])
@pytest.mark.parametrize("model", REASONS, indirect=True)
def test_its_unet_is_compressed_and_exported(model: Path, arm: str, call: Call, tmp_path: Path) -> None:
    code, out, err = call("compress", model, arm, "--out", tmp_path / "artifact", "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert answer["ledger"]["bits_per_quantized_weight"] < 8
    assert all(0 < layer["relative_mse"] < 0.5 for layer in answer["layers"])
    for out in ("unet", "unet.safetensors"):
        code, _, err = call("export", "artifact", "--out", out)
        assert code == 0, err
    plain, decoded = UNet2DConditionModel.from_pretrained(tmp_path / "unet"), load_artifact(tmp_path / "artifact")
    in_file = UnetWeights([tmp_path / "unet.safetensors"])
    decoded.dequantize()
    state = plain.state_dict()
    assert set(state) == set(in_file)
    for name, tensor in decoded.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-6)
        assert torch.equal(in_file[name], state[name].half())


@pytest.mark.parametrize("model", REASONS, indirect=True)
def test_an_image_and_statistics_are_refused_by_what_is_missing(
    model: Path, call: Call, request: pytest.FixtureRequest
) -> None:
    reason = REASONS[request.node.callspec.params["model"]]
    assert find_source(str(model)).no_image == reason
    for command, words in DRAWING.items():
        code, out, err = call(command, model, *words)
        wanted = f"error: no image can be drawn with {model}, nor statistics gathered on it: {reason}"
        assert (code, out, err.strip().splitlines()[-1]) == (2, "", wanted), command
