"""Compression while a model loads gives the artifact that `compress` makes of the same word, bit for bit."""

import logging
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, PipelineQuantizationConfig, StableDiffusionXLPipeline, UNet2DConditionModel
from native_cases import NANO, WORD, answer
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from sdvq_core import CompressionPlan, SdvqConfig, compress, make
from sdvq_core.diffusion.components import part_of_folder, write_single_file
from sdvq_core.diffusion.folders import WEIGHTED
from sdvq_core.errors import ConfigError, LayerError, StoreError
from sdvq_core.integrations.loading import load_artifact
from sdvq_core.nn import quantized_layers
from sdvq_core.plan import vqdm_rules
from sdvq_core.store import read_artifact, read_report


def on_load(config: SdvqConfig, **options):
    return UNet2DConditionModel.from_pretrained(NANO, subfolder="unet", quantization_config=config, **options)


def same_state(one, other):
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def test_it_makes_the_artifact_that_the_command_line_makes(nano_artifact, tmp_path):
    unet = on_load(SdvqConfig(WORD))
    assert not unet.training
    same_state(unet, load_artifact(nano_artifact))
    unet.save_pretrained(tmp_path)
    made, wanted = read_artifact(tmp_path), read_artifact(nano_artifact)
    assert made.manifest == wanted.manifest
    assert (made.records, made.versions) == (wanted.records, wanted.versions)
    assert read_report(tmp_path).ledger.tensor_bytes == read_report(nano_artifact).ledger.tensor_bytes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_codes_do_not_depend_on_the_dtype_that_is_computed_with(nano_artifact, dtype):
    unet = on_load(SdvqConfig(WORD), torch_dtype=dtype)
    same_state(unet, load_artifact(nano_artifact, dtype=dtype))
    assert {layer.dtype for _, layer in quantized_layers(unet)} == {dtype}
    assert answer(unet).dtype == dtype


def test_recipes_work_as_words_do(nano_artifact):
    unet = on_load(SdvqConfig("@preview"))
    same_state(unet, load_artifact(nano_artifact))
    assert unet.config["quantization_config"].manifest.recipe == "@preview"


def test_one_config_serves_many_models():
    config = SdvqConfig("rtn:bits=4")
    first, second = on_load(config), on_load(config)
    same_state(first, second)
    assert config.manifest is None
    assert config.to_dict() == {"quant_method": "sdvq", "recipe": "rtn:bits=4", "modules_to_not_convert": []}


@pytest.mark.parametrize("word", ["rtn:bits=4", "aq:bits=2,share=model"])
def test_it_is_what_compress_makes_without_statistics(word, caplog):
    with caplog.at_level(logging.WARNING, "sdvq_core"):
        unet = on_load(SdvqConfig(word))
    assert ("aq works without statistics here" in caplog.text) == word.startswith("aq")
    base = UNet2DConditionModel.from_pretrained(NANO, subfolder="unet")
    name, _, knobs = word.partition(":")
    settings = dict(item.split("=") for item in knobs.split(","))
    found = make({"name": name, **settings, "bits": int(settings["bits"])})
    for result in compress(base, CompressionPlan.resolve(base, vqdm_rules(found))):
        stored = unet.get_submodule(result.record.name).quantized
        assert all(torch.equal(tensor, stored.tensors[key]) for key, tensor in result.tensor.tensors.items())


def test_layers_can_be_left_as_they_are(tmp_path):
    keep = ["mid_block", "*.attn2.to_k", "down_blocks.0.resnets.0.conv1"]
    unet = on_load(SdvqConfig("rtn:bits=4", modules_to_not_convert=keep))
    base = UNet2DConditionModel.from_pretrained(NANO, subfolder="unet")
    names = {name for name, _ in quantized_layers(unet)}
    left = {name for name, _ in quantized_layers(on_load(SdvqConfig("rtn:bits=4")))} - names
    assert "down_blocks.0.resnets.0.conv1" in left
    assert any(name.startswith("mid_block.") for name in left)
    assert all(name.startswith(("mid_block.", "down_blocks.0.resnets.0.conv1")) or ".to_k" in name for name in left)
    assert torch.equal(unet.mid_block.resnets[0].conv1.weight, base.mid_block.resnets[0].conv1.weight)
    unet.save_pretrained(tmp_path)
    recipe = read_artifact(tmp_path).manifest.recipe
    assert recipe == "rtn:bits=4 without mid_block, *.attn2.to_k, down_blocks.0.resnets.0.conv1"


def test_a_pipeline_is_compressed_while_it_loads(nano_artifact):
    asked = PipelineQuantizationConfig("sdvq", {"recipe": WORD}, components_to_quantize="unet")
    mapped = PipelineQuantizationConfig(quant_mapping={"unet": SdvqConfig(WORD)})
    for config in (asked, mapped):
        pipe = StableDiffusionXLPipeline.from_pretrained(NANO, quantization_config=config)
        same_state(pipe.unet, load_artifact(nano_artifact))


def test_a_whole_model_is_never_in_float32(monkeypatch):
    """What is not compressed yet stays as it is stored, mapped from its file."""
    seen = {}

    def watched(model, plan):
        seen.update({item.name: model.get_submodule(item.name).weight for item in plan.assignments})
        return compress(model, plan)

    monkeypatch.setattr("sdvq_core.on_load.compress", watched)
    on_load(SdvqConfig("rtn:bits=4"))
    assert {weight.dtype for weight in seen.values()} == {torch.float16}


def test_an_artifact_stays_what_it_is(nano_artifact):
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        unet = UNet2DConditionModel.from_pretrained(nano_artifact, quantization_config=SdvqConfig("rtn:bits=4"))
    same_state(unet, load_artifact(nano_artifact))


@pytest.fixture(scope="module")
def nano_file(tmp_path_factory):
    """The bundled model as one file in the original layout."""
    path = tmp_path_factory.mktemp("file") / "nano.safetensors"
    with ExitStack() as stack:
        parts = {part: part_of_folder(Path(NANO) / part, stack) for part in WEIGHTED}
        assert all(write_single_file(path, parts))
    return str(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_unet_in_a_single_file_is_compressed_while_it_loads(nano_artifact, nano_file, dtype, tmp_path):
    config = {"config": str(NANO), "quantization_config": SdvqConfig(WORD), "torch_dtype": dtype}
    unet = UNet2DConditionModel.from_single_file(nano_file, subfolder="unet", **config)
    same_state(unet, load_artifact(nano_artifact, dtype=dtype))
    unet.save_pretrained(tmp_path)
    assert read_artifact(tmp_path).manifest.layers == read_artifact(nano_artifact).manifest.layers
    pipe = StableDiffusionXLPipeline.from_single_file(nano_file, config=str(NANO), unet=unet)
    assert pipe.unet is unet


def test_a_pipeline_in_a_single_file_is_told_to_load_its_unet_first(nano_file):
    """diffusers hands the config to every component of a single file."""
    sentence = "not AutoencoderKL; load the UNet by UNet2DConditionModel.from_single_file, and the pipeline with unet=…"
    with pytest.raises(ConfigError, match=f"^SDVQ compresses a UNet2DConditionModel, {sentence}$"):
        StableDiffusionXLPipeline.from_single_file(
            nano_file, config=str(NANO), quantization_config=SdvqConfig("rtn:bits=4")
        )


REFUSED = {
    "": "name what to make of the model",
    "fp16": "fp16 makes nothing while a model loads; name a quantizer",
    "lib.hqq:bits=4": "makes nothing while a model loads",
    "rvq:bits=77": "bits",
    "nonsense": "unknown arm 'nonsense'",
    "@vqdm-3bit": "learns from the original's trajectories.* sdvq_core compress MODEL @vqdm-3bit",
    "tcq:bits=2.6": "allocates bits by measured damage.* sdvq_core compress MODEL tcq:bits=2.6",
}


@pytest.mark.parametrize(("word", "sentence"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_made_while_loading_is_refused(word, sentence):
    with pytest.raises(ConfigError, match=sentence):
        on_load(SdvqConfig(word))


def test_more_that_is_refused():
    with pytest.raises(ConfigError, match="'attn7' matches no layer; there are layers such as"):
        on_load(SdvqConfig("rtn:bits=4", modules_to_not_convert=["attn7"]))
    with pytest.raises(ConfigError, match="on one device while it loads"):
        on_load(SdvqConfig("rtn:bits=4"), device_map={"conv_in": "cpu", "": "meta"})


OTHERS = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
SENTENCE = "SDVQ compresses a UNet2DConditionModel, not {}; for a pipeline pass components_to_quantize='unet'"


@pytest.mark.parametrize("part", OTHERS)
def test_other_components_are_refused_by_their_class(part):
    kind = OTHERS[part]
    with pytest.raises(ConfigError, match=f"^{SENTENCE.format(kind.__name__)}$"):
        kind.from_pretrained(NANO, subfolder=part, quantization_config=SdvqConfig("rtn:bits=4"))


def test_a_pipeline_that_names_no_component_is_refused():
    """Whatever is loaded first: diffusers' order depends on the hashes of names."""
    everything = PipelineQuantizationConfig("sdvq", {"recipe": WORD})
    with pytest.raises(ConfigError) as caught:
        StableDiffusionXLPipeline.from_pretrained(NANO, quantization_config=everything)
    assert str(caught.value) in [SENTENCE.format(kind.__name__) for kind in OTHERS.values()]


@pytest.mark.parametrize(("tensor", "error"), [
    ("mid_block.resnets.0.conv1.weight", LayerError), ("conv_in.bias", LayerError)])  # fmt: skip
def test_weights_that_are_not_finite_are_named(tmp_path, tensor, error):
    base = UNet2DConditionModel.from_pretrained(NANO, subfolder="unet")
    base.state_dict()[tensor][0] = float("nan")
    base.save_pretrained(tmp_path)
    with pytest.raises(error, match=tensor.removesuffix(".weight")):
        UNet2DConditionModel.from_pretrained(tmp_path, quantization_config=SdvqConfig("rtn:bits=4"))


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path):
    base = UNet2DConditionModel.from_pretrained(NANO, subfolder="unet")
    state = base.state_dict()
    del state["mid_block.resnets.0.conv1.weight"]
    base.save_pretrained(tmp_path)
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(StoreError, match=r"lacks the tensor mid_block.resnets.0.conv1.weight"):
        UNet2DConditionModel.from_pretrained(tmp_path, quantization_config=SdvqConfig("rtn:bits=4"))
