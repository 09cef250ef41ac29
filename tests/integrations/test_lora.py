"""LoRA adapters over compressed layers change an image by what they change on the same weights as floats."""

import copy
from itertools import pairwise

import pytest
import torch
from native_cases import PROMPT, answer, apart, latents, make_pipe
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn

from sdvq_core.errors import ConfigError
from sdvq_core.nn import PromptCache, QuantizedConv2d, QuantizedLayer, QuantizedLinear, quantized_layers, set_mode

EXACT = 2e-5  # what float32 rounding leaves between a compressed model and its float copy
WARNINGS = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")


@pytest.fixture
def pair(unet):
    """(pipeline with the compressed UNet, pipeline with the same weights as floats)."""
    return make_pipe(unet), make_pipe(copy.deepcopy(unet).dequantize())


def layers(unet, *kinds: type[nn.Module]) -> list[str]:
    return [name for name, layer in quantized_layers(unet) if isinstance(layer, kinds)]


def factors(layer: nn.Module, rank: int, seed: int, scale: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """(down, up) of a LoRA for `layer`."""
    random = torch.Generator().manual_seed(seed)
    out, into, *kernel = layer.shape
    down = torch.randn(rank, into, *kernel, generator=random) * scale
    return down, torch.randn(out, rank, *[1] * len(kernel), generator=random) * scale


def peft_file(path, unet, names, seed=0, rank=4):
    """A LoRA as diffusers and PEFT save it."""
    weights = {}
    for name in names:
        down, up = factors(unet.get_submodule(name), rank, seed)
        weights |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    save_file(weights, path)
    return path


def sgm(name: str, per_block: int) -> str:
    """The original SDXL code's name of a layer below `attentions`, as Civitai's files use it."""
    place, rest = name.split(".attentions.")
    number, _, inner = rest.partition(".")
    block = place.split("_")[0]
    if block == "mid":
        return f"middle_block_1_{inner}".replace(".", "_")
    start = int(place.rpartition(".")[2]) * (per_block + 1) + int(number)
    start += 1 if block == "down" else 0
    return f"{'input' if block == 'down' else 'output'}_blocks_{start}_1_{inner}".replace(".", "_")


def kohya_file(path, unet, names, original_names=False):
    """A LoRA or LoCon as kohya's scripts save it: alpha of half the rank."""
    weights, per_block = {}, unet.config.layers_per_block
    for name in names:
        key = "lora_unet_" + (sgm(name, per_block) if original_names else name.replace(".", "_"))
        down, up = factors(unet.get_submodule(name), 4, 0)
        weights |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(2.0)}
    save_file(weights, path)
    return path


FILES = {
    "linear": lambda path, unet: peft_file(path, unet, layers(unet, QuantizedLinear)),
    "conv": lambda path, unet: peft_file(path, unet, layers(unet, QuantizedConv2d)),
    "both": lambda path, unet: peft_file(path, unet, layers(unet, QuantizedLayer)),
    "kohya LoCon": lambda path, unet: kohya_file(path, unet, layers(unet, QuantizedLayer)),
    "civitai": lambda path, unet: kohya_file(
        path, unet, [name for name in layers(unet, QuantizedLinear) if ".attentions." in name], original_names=True
    ),
}


@pytest.mark.parametrize("mode", ["resident", "streaming"])
@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
def test_a_lora_changes_what_it_changes_on_floats(pair, tmp_path, write, mode):
    compressed, floats = pair
    set_mode(compressed.unet, mode)
    path = write(tmp_path / "lora.safetensors", compressed.unet)
    before = latents(compressed)
    for pipe in pair:
        pipe.load_lora_weights(path, adapter_name="style")
    after = latents(compressed)
    assert apart(after, before) > 0.01, "it has an effect"
    assert apart(after, latents(floats)) < EXACT
    assert apart(after - before, latents(floats) - before) < 10 * EXACT
    adapted = [module for module in compressed.unet.modules() if isinstance(module, LoraLayer)]
    assert adapted
    assert all(isinstance(module.get_base_layer(), QuantizedLayer) for module in adapted)
    compressed.unload_lora_weights()
    assert torch.equal(latents(compressed), before)


@WARNINGS
def test_several_adapters_with_weights(pair, tmp_path):
    compressed, floats = pair
    names = layers(compressed.unet, QuantizedLayer)
    one = peft_file(tmp_path / "1.safetensors", compressed.unet, names[:40], seed=1)
    two = peft_file(tmp_path / "2.safetensors", compressed.unet, names[20:], seed=2, rank=8)
    before, seen = latents(compressed), []
    for pipe in pair:
        pipe.load_lora_weights(one, adapter_name="one")
        pipe.load_lora_weights(two, adapter_name="two")
    for weights in ((1.0, 1.0), (0.5, -0.3), (0.0, 1.0), (0.0, 0.0)):
        for pipe in pair:
            pipe.set_adapters(["one", "two"], list(weights))
        seen.append(latents(compressed))
        assert apart(seen[-1], latents(floats)) < EXACT
    assert min(apart(left, right) for left, right in pairwise(seen)) > 0.01
    assert torch.equal(seen[-1], before)
    for pipe in pair:
        pipe.set_adapters(["one", "two"], [1.0, 1.0])
        pipe.delete_adapters("one")
    assert compressed.get_active_adapters() == ["two"]
    assert apart(latents(compressed), latents(floats)) < EXACT
    assert apart(latents(compressed), seen[2]) < EXACT
    compressed.disable_lora()
    assert torch.equal(latents(compressed), before)


def test_half_precision(nano_artifact, tmp_path):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(nano_artifact, torch_dtype=torch.float16)
    path = peft_file(tmp_path / "lora.safetensors", unet, layers(unet, QuantizedLayer))
    unet.load_lora_adapter(load_file(path), prefix="unet")
    assert {value.dtype for name, value in unet.named_parameters() if "lora" in name} == {torch.float16}
    assert answer(unet).dtype == torch.float16


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("part", ["pipe", "unet"])
def test_fusing_is_refused_and_nothing_is_half_done(pair, tmp_path, safe, part):
    pipe, _ = pair
    kept, coded = "down_blocks.0.resnets.0.time_emb_proj", layers(pipe.unet, QuantizedLinear)[0]
    weights = {}
    for name in (kept, coded):
        down, up = torch.full((2, pipe.unet.get_submodule(name).in_features), 0.1), None
        up = torch.full((pipe.unet.get_submodule(name).out_features, 2), 0.1)
        weights |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    pipe.load_lora_weights(weights)
    before = latents(pipe)
    with pytest.raises(
        ConfigError, match=r"fused weights would be floats.* keep the LoRA as an adapter \(set_adapters\)"
    ):
        pipe.fuse_lora(safe_fusing=safe) if part == "pipe" else pipe.unet.fuse_lora(safe_fusing=safe)
    assert torch.equal(latents(pipe), before)
    layer = pipe.unet.get_submodule(coded)
    with pytest.raises(ConfigError, match="cannot be written to; keep a LoRA as an adapter"):
        layer.merge(safe_merge=safe)
    assert torch.equal(latents(pipe), before)


def test_a_lora_is_saved_and_loaded_again(pair, tmp_path):
    pipe, _ = pair
    path = peft_file(tmp_path / "lora.safetensors", pipe.unet, layers(pipe.unet, QuantizedLayer))
    pipe.load_lora_weights(path, adapter_name="style")
    before = latents(pipe)
    pipe.unet.save_lora_adapter(tmp_path / "saved", adapter_name="style")
    stored = load_file(tmp_path / "saved" / "pytorch_lora_weights.safetensors")
    assert all("lora_" in name for name in stored)
    pipe.unload_lora_weights()
    pipe.unet.load_lora_adapter(tmp_path / "saved" / "pytorch_lora_weights.safetensors", prefix=None)
    assert torch.equal(latents(pipe), before)


def test_a_model_with_adapters_is_not_saved_as_an_artifact(pair, tmp_path):
    pipe, _ = pair
    pipe.load_lora_weights(peft_file(tmp_path / "l.safetensors", pipe.unet, layers(pipe.unet, QuantizedLinear)[:2]))
    with pytest.raises(ConfigError, match=r"unload adapters first \(unload_lora_weights"):
        pipe.unet.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    pipe.unload_lora_weights()
    pipe.unet.save_pretrained(tmp_path / "out")


def test_dequantized_under_an_adapter_it_may_be_fused(pair, tmp_path):
    pipe, _ = pair
    pipe.load_lora_weights(peft_file(tmp_path / "l.safetensors", pipe.unet, layers(pipe.unet, QuantizedLayer)))
    before = latents(pipe)
    pipe.unet.dequantize()
    assert apart(latents(pipe), before) < EXACT
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert apart(latents(pipe), before) < 10 * EXACT


TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
FOREIGN = {
    "wider": (
        {f"{TO_Q}.lora_A.weight": torch.ones(4, 2048), f"{TO_Q}.lora_B.weight": torch.ones(2048, 4)},
        r"made for another architecture: down_blocks.1.attentions.0.*.to_q has \d+ inputs here, 2048 there",
    ),
    "other layers": (
        {"unet.blocks.7.attn.lora_A.weight": torch.ones(4, 8), "unet.blocks.7.attn.lora_B.weight": torch.ones(8, 4)},
        "this model has none of its layers, such as blocks.7.attn",
    ),
    "flux": (
        {"transformer.x.lora_A.weight": torch.ones(4, 8), "transformer.x.lora_B.weight": torch.ones(8, 4)},
        r"no weights for a UNet of SDXL; its first is transformer.x.lora_A.weight",
    ),
}


@pytest.mark.parametrize(("weights", "sentence"), FOREIGN.values(), ids=FOREIGN)
def test_a_lora_of_another_architecture_gets_a_sentence(pair, weights, sentence):
    pipe, _ = pair
    before = list(dict(pipe.unet.named_modules()))
    with pytest.raises(ConfigError, match=sentence):
        pipe.load_lora_weights(weights)
    assert list(dict(pipe.unet.named_modules())) == before
    assert not hasattr(pipe.unet, "peft_config")


@pytest.mark.parametrize("form", ["weights", "file", "folder"])
@pytest.mark.parametrize(("weights", "sentence"), FOREIGN.values(), ids=FOREIGN)
def test_the_models_own_method_says_the_same(unet, tmp_path, weights, sentence, form):
    save_file(weights, tmp_path / "lora.safetensors")
    place = {"weights": weights, "file": tmp_path / "lora.safetensors", "folder": tmp_path}[form]
    named = {"weight_name": "lora.safetensors"} if form == "folder" else {}
    before = list(dict(unet.named_modules()))
    with pytest.raises(ConfigError, match=sentence):
        unet.load_lora_adapter(place, prefix="unet", **named)
    assert list(dict(unet.named_modules())) == before
    assert not hasattr(unet, "peft_config")


@pytest.mark.parametrize("form", ["weights", "file", "folder"])
def test_a_lora_is_loaded_by_the_models_own_method(pair, tmp_path, form):
    compressed, floats = pair
    path = peft_file(tmp_path / "lora.safetensors", compressed.unet, layers(compressed.unet, QuantizedLayer))
    place = {"weights": load_file(path), "file": str(path), "folder": tmp_path}[form]
    named = {"weight_name": "lora.safetensors"} if form == "folder" else {}
    before = answer(compressed.unet)
    with pytest.raises(ConfigError, match=r"its first is unet\..*; pass prefix='unet'"):
        compressed.unet.load_lora_adapter(pretrained_model_name_or_path_or_dict=place, **named)
    for pipe in pair:
        pipe.unet.load_lora_adapter(pretrained_model_name_or_path_or_dict=place, prefix="unet", **named)
    assert apart(answer(compressed.unet), before) > 0.01
    assert apart(answer(compressed.unet), answer(floats.unet)) < EXACT


def test_a_lora_for_the_text_alone_is_welcome(pair):
    pipe, _ = pair
    name = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    width = pipe.text_encoder.config.hidden_size
    before = latents(pipe)
    weights = {f"{name}.lora_A.weight": torch.ones(2, width) * 0.1, f"{name}.lora_B.weight": torch.ones(width, 2) * 0.1}
    pipe.load_lora_weights(weights)
    assert apart(latents(pipe), before) > 1e-4


def test_an_adapter_is_trained_over_codes(unet):
    unet.requires_grad_(False)
    codes = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "conv1"], init_lora_weights="gaussian"))
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.SGD(trained, 0.01), []
    for _ in range(3):
        loss = answer(unet).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert any(float(parameter.grad.abs().max()) > 0 for parameter in trained)
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    after = {name.replace("base_layer.", ""): tensor for name, tensor in unet.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in codes.items())


def test_dora_reads_the_decoded_weight(pair):
    config = LoraConfig(r=2, target_modules=["to_q", "conv1"], use_dora=True, init_lora_weights=False)
    before = answer(pair[0].unet)
    for pipe in pair:
        torch.manual_seed(0)
        pipe.unet.add_adapter(config)
    with torch.no_grad():
        one, other = (answer(pipe.unet) for pipe in pair)
    assert apart(one, before) > 0.01
    assert apart(one, other) < EXACT


def test_kept_answers_to_the_prompt_do_not_hide_an_adapter(pair, tmp_path):
    pipe, _ = pair
    names = [name for name in layers(pipe.unet, QuantizedLinear) if name.endswith(("attn2.to_k", "attn2.to_v"))]
    path = peft_file(tmp_path / "lora.safetensors", pipe.unet, names)
    states = torch.randn(1, 8, pipe.unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        cache = PromptCache(pipe.unet)

        def ask(states=states):
            with cache:
                return pipe.unet.get_submodule(names[0])(states)

        before = ask()
        assert ask() is before, "it is remembered"
        pipe.load_lora_weights(path, adapter_name="style")
        after = ask()
        assert apart(after, before) > 0.01
        pipe.set_adapters("style", 0.5)
        assert apart(ask(), (before + after) / 2) < EXACT
        pipe.unload_lora_weights()
        assert torch.equal(ask(), before)
        fresh = PromptCache(pipe.unet)
        pipe.load_lora_weights(path, adapter_name="style")
        with PromptCache(pipe.unet), fresh:
            assert torch.equal(pipe.unet.get_submodule(names[0])(states), after)


def test_a_prompt_is_drawn_with_a_lora(pair, tmp_path):
    path = peft_file(tmp_path / "lora.safetensors", pair[0].unet, layers(pair[0].unet, QuantizedLinear))
    images = []
    for pipe in pair:
        pipe.load_lora_weights(path)
        noise = torch.Generator().manual_seed(3)
        images.append(pipe(PROMPT, num_inference_steps=2, output_type="pt", generator=noise).images)
    assert float((images[0] - images[1]).abs().max()) < 1 / 255
