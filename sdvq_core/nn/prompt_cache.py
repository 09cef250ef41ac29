"""Keys and values of the prompt, computed once: `*.attn2.to_k` and `*.attn2.to_v` see the same text in every step.

An answer is given again only for the very same input tensor (identity and version, the tensor is held), and only while
nobody wrote into the answer; so it is the number that the layer would compute again, bit for bit, as long
as nobody changes weights in the middle of a sampling. What anybody looks at
or trains keeps being called: layers of another class (LoRA, parametrizations), with hooks, with a forward that somebody
replaced, in training, or with parameters that require gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from sdvq_core.nn.layers import QuantizedLinear

ENDINGS = (".attn2.to_k", ".attn2.to_v")


@dataclass(frozen=True, eq=False)
class _Answer:
    """What a layer said to `given`, and the versions of both tensors then."""

    given: Tensor
    said: Tensor
    versions: tuple[int, int]

    def holds_for(self, given: Tensor) -> bool:
        return given is self.given and (given._version, self.said._version) == self.versions


class PromptCache:
    """The answers of one sampling; `with cache:` around a call of the UNet uses them and leaves no trace on it.

    A sampling enters it in every step anew, so that the model is its own between steps: it may be copied, hooked, or
    sample something else meanwhile.
    """

    def __init__(self, unet: nn.Module) -> None:
        self._layers = [layer for name, layer in unet.named_modules() if f".{name}".endswith(ENDINGS)]
        self._answers: dict[nn.Module, _Answer] = {}

    def __enter__(self) -> PromptCache:
        self._changed = [layer for layer in self._layers if _is_plain(layer)]
        for layer in self._changed:
            layer.forward = partial(self._answer, layer)
        return self

    def __exit__(self, *_: object) -> None:
        for layer in self._changed:
            layer.__dict__.pop("forward", None)  # the class's is seen again

    def _answer(self, layer: nn.Module, given: Tensor) -> Tensor:
        known = self._answers.get(layer)
        if known is not None and known.holds_for(given):
            return known.said
        said: Tensor = type(layer).forward(layer, given)
        if given.is_inference() or said.is_inference():  # a change in place would go unnoticed
            self._answers.pop(layer, None)
        else:
            self._answers[layer] = _Answer(given, said, (given._version, said._version))
        return said


def _is_plain(layer: nn.Module) -> bool:
    """Whether nobody would miss a call of `layer`."""
    return (
        type(layer) in (nn.Linear, QuantizedLinear)
        and "forward" not in layer.__dict__
        and not layer.training
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not any(parameter.requires_grad for parameter in layer.parameters())
    )
