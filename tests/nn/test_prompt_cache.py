"""The prompt's keys and values are computed once per sampling, are the same numbers, and nothing stays behind."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from core_cases import gaussian, quantizer
from torch import Tensor, nn

from sdvq_core.nn import PromptCache, QuantizedLinear, set_mode, swap_layer

TEXT = gaussian((2, 5, 24), 1, 1.0)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(24, 24, bias=False) for _ in range(3))


class Block(nn.Module):
    """A cross-attention as diffusers names it, without the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2 = Attention(), Attention()

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        x = x + self.attn1.to_q(x) + self.attn1.to_k(x)
        return x + self.attn2.to_q(x) * self.attn2.to_k(text) + self.attn2.to_v(text)


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, text)
        return x


@pytest.fixture(params=["float", "resident", "streaming"])
def unet(request: pytest.FixtureRequest) -> Unet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Unet().eval().requires_grad_(False)
    if request.param != "float":
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear):
                swap_layer(model, name, quantizer("rtn").quantize(layer.weight))
        set_mode(model, request.param)
    return model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[nn.Module]:
    """How often each layer computed."""
    counter: Counter[nn.Module] = Counter()

    def counted(kind: type[nn.Module]) -> None:
        forward = kind.forward

        def count(layer: nn.Module, x: Tensor) -> Tensor:
            counter[layer] += 1
            return forward(layer, x)

        monkeypatch.setattr(kind, "forward", count)

    counted(nn.Linear)
    counted(QuantizedLinear)
    return counter


def by_name(model: nn.Module, calls: Counter[nn.Module]) -> dict[str, int]:
    return {name: calls[layer] for name, layer in model.named_modules() if layer in calls}


def sampled(unet: Unet, steps: int, texts: list[Tensor] | None = None) -> Tensor:
    """A few steps, the cache entered in each."""
    x, cache = gaussian((2, 5, 24), 2, 1.0), PromptCache(unet)
    for step in range(steps):
        with cache:
            x = unet(x, texts[step] if texts else TEXT)
    return x


def plain(unet: Unet, steps: int, texts: list[Tensor] | None = None) -> Tensor:
    x = gaussian((2, 5, 24), 2, 1.0)
    for step in range(steps):
        x = unet(x, texts[step] if texts else TEXT)
    return x


def test_keys_and_values_are_computed_once_and_the_result_is_the_same(unet, calls):
    found = sampled(unet, 4)
    assert by_name(unet, calls) == {
        name: 1 if ".attn2." in name and not name.endswith("to_q") else 4
        for name, layer in unet.named_modules()
        if isinstance(layer, nn.Linear | QuantizedLinear) and not name.endswith("attn1.to_v")
    }
    assert torch.equal(found, plain(unet, 4))


def test_another_tensor_is_another_prompt(unet, calls):
    texts = [TEXT, TEXT.clone(), TEXT * 2, TEXT]
    assert torch.equal(sampled(unet, 4, texts), plain(unet, 4, texts))
    assert calls[unet.blocks[0].attn2.to_k] == 4 + 4


@pytest.mark.parametrize("place", ["text", "answer"])
def test_what_was_written_into_is_asked_anew(unet, calls, place):
    text, cache, key = TEXT.clone(), PromptCache(unet), unet.blocks[0].attn2.to_k
    with cache:
        unet(TEXT, text)
        written = text if place == "text" else key(text)
        written += 1
        found = unet(TEXT, text)
    assert calls[key] == 2
    assert torch.equal(found, unet(TEXT, text))


def test_nothing_stays_behind(unet):
    before = {name: set(layer.__dict__) for name, layer in unet.named_modules()}
    sampled(unet, 2)
    with pytest.raises(RuntimeError), PromptCache(unet):
        unet(TEXT, TEXT[..., 1:])
    assert {name: set(layer.__dict__) for name, layer in unet.named_modules()} == before


def test_two_samplings_may_interleave(unet, calls):
    one, two, texts = PromptCache(unet), PromptCache(unet), (TEXT, TEXT * 2)
    expected = [unet(TEXT, text) for text in texts]
    calls.clear()
    for _ in range(3):
        for cache, text, wanted in zip((one, two), texts, expected, strict=True):
            with cache:
                assert torch.equal(unet(TEXT, text), wanted)
    assert calls[unet.blocks[1].attn2.to_v] == 2
    with one, two:
        assert torch.equal(unet(TEXT, texts[0]), expected[0])
    assert "forward" not in unet.blocks[1].attn2.to_v.__dict__


def seen(unet, layer):
    layer.register_forward_hook(lambda *_: None)


def seen_before(unet, layer):
    layer.register_forward_pre_hook(lambda *_: None)


def in_training(unet, layer):
    layer.train()


def learning(unet, layer):
    layer.bias = nn.Parameter(torch.zeros(24))


def replaced(unet, layer):
    forward = type(layer).forward
    layer.forward = lambda x: forward(layer, x)


def wrapped(unet, layer):
    """As LoRA does it: the layer's name belongs to a module of another class."""
    unet.blocks[0].attn2.to_k = nn.Sequential(layer).eval()


@pytest.mark.parametrize("change", [seen, seen_before, in_training, learning, replaced, wrapped])
def test_what_somebody_looks_at_or_trains_keeps_being_called(unet, calls, change):
    key, value = unet.blocks[0].attn2.to_k, unet.blocks[0].attn2.to_v
    change(unet, key)
    found = sampled(unet, 3)
    assert (calls[key], calls[value]) == (3, 1)
    assert torch.equal(found, plain(unet, 3))
    assert ("forward" in key.__dict__) == (change is replaced)


def test_inference_tensors_are_not_remembered(unet, calls):
    with torch.inference_mode():
        text, cache = TEXT.clone(), PromptCache(unet)
        for _ in range(2):
            with cache:
                unet(TEXT, text)
    assert calls[unet.blocks[0].attn2.to_k] == 2
