"""A compressed UNet in diffusers does what a float one does, or says in one sentence why not."""

import copy
import pickle

import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    AutoPipelineForImage2Image,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from native_cases import NANO, answer, apart, latents, make_pipe
from torch import nn

from sdvq_core.errors import ConfigError, StoreError
from sdvq_core.integrations.loading import load_artifact
from sdvq_core.nn import QuantizedLayer, footprint, mode_of, modes, quantized_layers, set_mode
from sdvq_core.store import read_artifact, read_report

ORIGINAL = 10_945_160  # parameters of the bundled UNet


def state_equal(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_pipeline_is_saved_with_its_compressed_unet_and_loaded_again(pipe, tmp_path):
    before = latents(pipe)
    pipe.save_pretrained(tmp_path)
    again = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert state_equal(again.unet, pipe.unet)
    assert torch.equal(latents(again), before)
    assert read_artifact(tmp_path / "unet").manifest == pipe.unet.config["quantization_config"].manifest


def test_other_pipelines_take_its_unet_over(pipe):
    other = StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)
    assert other.unet is pipe.unet
    assert AutoPipelineForImage2Image.from_pipe(pipe).unet is pipe.unet
    assert type(pipe.unet) is UNet2DConditionModel


def test_shards_and_variants_load_again(unet, tmp_path):
    unet.save_pretrained(tmp_path, max_shard_size="1MB", variant="vq")
    assert len(list(tmp_path.glob("*.vq-*.safetensors"))) > 3
    assert state_equal(UNet2DConditionModel.from_pretrained(tmp_path, variant="vq"), unet)
    with pytest.raises(StoreError, match=r"has no diffusion_pytorch_model.safetensors; .*from_pretrained"):
        load_artifact(tmp_path)


def test_the_report_card_survives_saving(nano_artifact, unet, tmp_path):
    unet.save_pretrained(tmp_path / "by diffusers")
    load_artifact(nano_artifact).save_pretrained(tmp_path / "by us")
    for again in tmp_path.iterdir():
        before, after = read_report(nano_artifact), read_report(again)
        assert (after.layers, after.versions, after.base) == (before.layers, before.versions, before.base)
        assert len(after.layers) == 118


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_saved_in_any_dtype_is_a_sound_artifact(nano_artifact, tmp_path, dtype):
    UNet2DConditionModel.from_pretrained(nano_artifact, torch_dtype=dtype).save_pretrained(tmp_path)
    again = load_artifact(tmp_path, dtype=dtype)
    assert state_equal(again, load_artifact(nano_artifact, dtype=dtype))


def test_pickles_are_not_written(unet, tmp_path):
    with pytest.raises(ConfigError, match="saved as safetensors only"):
        unet.save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "cast",
    [
        pytest.param(lambda unet: unet.half(), id="half"),
        pytest.param(lambda unet: unet.to(torch.float16), id="to"),
        pytest.param(lambda unet: unet.to("cpu", torch.float16), id="to both"),
        pytest.param(lambda unet: make_pipe(unet).to(torch.float16).unet, id="pipe.to"),
    ],
)
def test_casting_casts_what_is_not_a_code(nano_artifact, cast):
    unet = cast(UNet2DConditionModel.from_pretrained(nano_artifact))
    assert (unet.dtype, unet.is_quantized) == (torch.float16, True)
    assert state_equal(unet, UNet2DConditionModel.from_pretrained(nano_artifact, torch_dtype=torch.float16))
    assert {layer.dtype for _, layer in quantized_layers(unet)} == {torch.float16}
    assert unet.float().dtype == torch.float32


def test_moving_is_chained_to_loading(nano_artifact):
    unet = UNet2DConditionModel.from_pretrained(nano_artifact).to("cpu").eval().requires_grad_(False)
    assert unet.device == torch.device("cpu")


def test_its_mode_follows_the_memory_where_it_is(nano_artifact, monkeypatch):
    unet = UNet2DConditionModel.from_pretrained(nano_artifact)
    assert mode_of(unet) == "resident"
    monkeypatch.setattr(modes, "free_nbytes", lambda device: 1000)
    assert mode_of(unet.to("cpu")) == "streaming"
    monkeypatch.undo()
    assert mode_of(unet.to("cpu")) == "resident"
    set_mode(unet, "streaming")
    assert mode_of(unet.to("cpu")) == "streaming", "as it was asked for"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda unet: pickle.loads(pickle.dumps(unet))])
def test_copies_are_whole(unet, tmp_path, copied):
    twin = copied(unet)
    assert state_equal(twin, unet)
    unet.conv_in.weight.data.zero_()
    twin.half().save_pretrained(tmp_path)
    assert state_equal(load_artifact(tmp_path, dtype=torch.float16), twin)
    assert not state_equal(twin, unet.half())


def test_a_state_dict_goes_round(nano_artifact, unet):
    other = UNet2DConditionModel.from_pretrained(nano_artifact)
    state = {name: value.clone() for name, value in unet.state_dict().items()}
    for value in other.state_dict().values():
        value.zero_()
    other.load_state_dict(state)
    assert state_equal(other, unet)
    name, layer = next(quantized_layers(other))
    assert torch.equal(layer.decoded(torch.float32), unet.get_submodule(name).decoded(torch.float32))


def test_it_counts_the_parameters_that_it_stands_for(unet, nano_artifact):
    original = UNet2DConditionModel.from_pretrained(NANO, subfolder="unet")
    assert original.num_parameters() == unet.num_parameters() == ORIGINAL
    assert unet.requires_grad_(False).num_parameters(only_trainable=True) == 0
    assert original.get_memory_footprint() > 7 * unet.get_memory_footprint()
    assert unet.get_memory_footprint() == footprint(unet).nbytes


@pytest.mark.parametrize("place", ["auto", "balanced", "sequential", {"": "cpu"}, "cpu"], ids=str)
def test_device_maps(nano_artifact, unet, place):
    mapped = UNet2DConditionModel.from_pretrained(nano_artifact, device_map=place)
    assert {str(device) for device in mapped.hf_device_map.values()} == {"cpu"}
    assert state_equal(mapped, unet)


def test_loading_into_a_whole_model_is_refused_by_diffusers(nano_artifact, unet):
    assert state_equal(UNet2DConditionModel.from_pretrained(nano_artifact, low_cpu_mem_usage=True), unet)
    with pytest.raises(ValueError, match="`low_cpu_mem_usage` cannot be False or None when using quantization"):
        UNet2DConditionModel.from_pretrained(nano_artifact, low_cpu_mem_usage=False)


def offload_parts(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def offload_layers(pipe):
    """What enable_sequential_cpu_offload does to the UNet (transformers' text encoders fail on a CPU)."""
    cpu_offload(pipe.unet, torch.device("cpu"), offload_buffers=len(pipe.unet._parameters) > 0)
    assert all(parameter.is_meta for parameter in pipe.unet.parameters())


def offload_groups(pipe):
    pipe.unet.enable_group_offload(torch.device("cpu"), torch.device("cpu"), "leaf_level")


SWITCHES = {
    "model_cpu_offload": offload_parts,
    "sequential_cpu_offload": offload_layers,
    "group_offload": offload_groups,
    "attention slicing": lambda pipe: pipe.enable_attention_slicing(1),
    "vae tiling": lambda pipe: pipe.vae.enable_tiling(),
    "vae slicing": lambda pipe: pipe.vae.enable_slicing(),
    "freeu": lambda pipe: (pipe.enable_freeu(0.9, 0.2, 1.2, 1.4), pipe.disable_freeu()),
    "streaming": lambda pipe: set_mode(pipe.unet, "streaming"),
}


@pytest.mark.parametrize("switch", SWITCHES.values(), ids=SWITCHES)
def test_switches_of_a_pipeline_change_no_image(pipe, switch):
    before = latents(pipe)
    switch(pipe)
    assert apart(latents(pipe), before) < 1e-5


def test_offloaded_layer_by_layer_nothing_decoded_stays(pipe):
    latents(pipe)
    offload_layers(pipe)
    latents(pipe)
    assert all(layer._decoded is None for _, layer in quantized_layers(pipe.unet))


REFUSED = {
    "fuse_qkv_projections": lambda unet: unet.fuse_qkv_projections(),
    "pipe.fuse_qkv_projections": lambda unet: make_pipe(unet).fuse_qkv_projections(vae=False),
    "enable_layerwise_casting": lambda unet: unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32),
}


@pytest.mark.parametrize("ask", REFUSED.values(), ids=REFUSED)
def test_what_codes_cannot_do_is_refused_before_anything_changes(unet, ask):
    before = [name for name, _ in unet.named_modules()]
    with pytest.raises(ConfigError, match=r"this model is compressed: .* call dequantize\(\) on the model first"):
        ask(unet)
    assert [name for name, _ in unet.named_modules()] == before


def test_models_that_are_not_compressed_keep_their_ways(unet):
    original = UNet2DConditionModel.from_pretrained(NANO, subfolder="unet")
    original.fuse_qkv_projections()
    assert any(name.endswith("to_qkv") for name, _ in original.named_modules())


def test_dequantized_it_is_a_float_model_that_draws_the_same(pipe, tmp_path):
    before = latents(pipe)
    pipe.unet = pipe.unet.dequantize()
    assert not any(isinstance(module, QuantizedLayer) for module in pipe.unet.modules())
    assert apart(latents(pipe), before) < 1e-5
    assert pipe.unet.num_parameters() == ORIGINAL
    pipe.unet.save_pretrained(tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    plain = UNet2DConditionModel.from_pretrained(tmp_path)
    assert [name for name in plain.state_dict() if "sdvq" in name] == []
    assert state_equal(plain, pipe.unet)
    plain.fuse_qkv_projections()
    with pytest.raises(ValueError, match="first quantize"):
        pipe.unet.dequantize()


def test_gradients_pass_through_and_are_checkpointed(pipe):
    unet = pipe.unet
    unet.enable_gradient_checkpointing()
    assert unet.is_gradient_checkpointing
    unet.train().requires_grad_(False)
    unet.conv_in.bias.requires_grad_(True)
    answer(unet).square().sum().backward()
    assert float(unet.conv_in.bias.grad.abs().max()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_compiled_it_draws_the_same(pipe, whole):
    before = latents(pipe)
    torch.compiler.reset()
    if whole:
        pipe.unet = torch.compile(pipe.unet, backend="aot_eager", fullgraph=True)
    else:
        pipe.unet.compile_repeated_blocks(backend="aot_eager", fullgraph=True)
    assert apart(latents(pipe), before) < 1e-4
