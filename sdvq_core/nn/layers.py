"""QuantizedLinear and QuantizedConv2d: the stored arrays are buffers, the weight exists only when it is needed.

mode "resident": decoded once, at the first forward, and kept in the dtype of the input (speed of the float layer).
mode "streaming": decoded in every forward and dropped, or inside the product (memory of the codes).
Stored arrays keep their dtype under `.to(dtype)` and `.half()`; they move with `.to(device)`.
A quantized layer *is* the float layer that it replaces (`isinstance`), for PEFT and all others who ask that way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdvq_core.errors import ConfigError
from sdvq_core.kernels import way
from sdvq_core.nn.compiling import decode_op
from sdvq_core.nn.guard import guarded
from sdvq_core.qtensor import Meta, QuantizedTensor, TensorSpec, get_format

MODES = ("resident", "streaming")


class StoredBuffers(nn.Module):
    """A module whose buffers never change dtype: what is stored is what is kept."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


class SharedCodebooks(StoredBuffers):
    """Codebook sets that many layers use, stored once at the root of a model, by name."""

    def get(self, name: str) -> Tensor:
        """The set called `name`."""
        if hasattr(self, "_hf_hook"):  # accelerate, which brings what is offloaded around a call
            found: Tensor = self(name)
            return found
        return self.forward(name)

    def forward(self, name: str) -> Tensor:
        """The set called `name`, where it is now."""
        buffer = self._buffers[name]
        assert buffer is not None
        return buffer

    def __contains__(self, name: str) -> bool:
        return name in self._buffers

    def put(self, name: str, codebooks: Tensor) -> None:
        """Store a set; storing the same name again replaces it."""
        if name in self:
            self._buffers[name] = codebooks
        else:
            self.register_buffer(name, codebooks)


class _Decoder:
    """A prepared decoder, and the arrays that it was prepared for as they were then."""

    def __init__(self, stored: Mapping[str, Tensor], decode: Callable[[torch.dtype], Tensor]) -> None:
        self.decode = decode
        self._seen = [(tensor, _version(tensor)) for tensor in stored.values()]

    def fits(self, stored: Mapping[str, Tensor]) -> bool:
        """Whether these are the same arrays, and nobody wrote into them (through `.data` it goes unnoticed)."""
        found = zip(stored.values(), self._seen, strict=True)
        return all(tensor is seen and _version(tensor) == version for tensor, (seen, version) in found)


def _version(tensor: Tensor) -> float:
    return float("nan") if tensor.is_inference() else tensor._version  # NaN: never the same


class QuantizedLayer(StoredBuffers):
    """What the two kinds of layer share. `replaces` is the float layer, `kind` its word in reports.

    dtype: what the layer computes in where nobody says otherwise; follows `.to(dtype)`.
    """

    replaces: ClassVar[type[nn.Module]]
    kind: ClassVar[str]
    bias: nn.Parameter | None

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """A float layer where it is called as that is: PEFT makes a convolution by `type(layer)(channels, rank, …)`."""
        if (args and not isinstance(args[0], nn.Module)) or (kwargs and not args):
            return cls.replaces(*args, **kwargs)
        return super().__new__(cls)

    def __init__(self, original: nn.Module, form: str, meta: Meta, shared: SharedCodebooks) -> None:
        nn.Module.__init__(self)  # not that of the float layer, which would make a weight
        weight, bias = original.weight, original.bias
        assert isinstance(weight, Tensor)
        self.form, self.meta, self.shape = form, dict(meta), tuple(weight.shape)
        self.dtype = weight.dtype
        self.mode = "resident"
        self.auto = False  # whether `mode` may be chosen again when the model moves
        self._shared = (shared,)  # in a tuple, so that it is not a submodule of every layer
        self._decoded: Tensor | None = None
        self._decoder: _Decoder | None = None
        self.specs: dict[str, TensorSpec] = get_format(form).spec(self.shape, self.meta)
        for name, spec in self.specs.items():
            if not spec.shared:
                self.register_buffer(name, torch.empty(spec.shape, dtype=spec.dtype, device="meta"))
        self._words = json.dumps(self.meta)
        self.bias = bias if isinstance(bias, nn.Parameter) else None

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the stored arrays of a QuantizedTensor; shared ones go to the model's SharedCodebooks."""
        for name, spec in self.specs.items():
            if spec.shared:
                self._shared[0].put(spec.shared, tensors[name])
            else:
                self._buffers[name] = tensors[name]
        self._decoded = self._decoder = None

    @property
    def stored(self) -> dict[str, Tensor]:
        """The stored arrays, shared ones included."""
        return {name: self._stored(name, spec) for name, spec in self.specs.items()}

    @property
    def quantized(self) -> QuantizedTensor:
        """The stored weight as a value."""
        return QuantizedTensor(self.form, self.shape, self.stored, self.meta)

    def _stored(self, name: str, spec: TensorSpec) -> Tensor:
        buffer = self._shared[0].get(spec.shared) if spec.shared else self._buffers[name]
        assert buffer is not None
        return buffer

    def decoded(self, dtype: torch.dtype) -> Tensor:
        """The weight in `dtype`, from memory in resident mode unless accelerate offloads the layer after each use."""
        if getattr(getattr(self, "_hf_hook", None), "offload", False):
            self._decoded = None
            return self._decode(dtype)
        if self.mode == "streaming":
            return self._decode(dtype)
        if self._decoded is None or self._decoded.dtype != dtype:
            self._decoded = self._decode(dtype)
        return self._decoded

    def _decode(self, dtype: torch.dtype) -> Tensor:
        if torch.compiler.is_compiling():
            traced: Tensor = decode_op(list(self.stored.values()), self.form, self.shape, self._words, dtype)
            return traced
        stored, form = self.stored, get_format(self.form)
        if self.mode == "resident" or not form.is_prepared(self.meta):
            return form.decode(stored, self.shape, self.meta, dtype)  # checked when it was filled
        if self._decoder is None or not self._decoder.fits(stored):
            self._decoder = _Decoder(stored, form.decoder(stored, self.shape, self.meta))
        return self._decoder.decode(dtype)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_decoder": None}

    @property
    def weight(self) -> Tensor:
        """The decoded weight in `dtype`, for code that looks at weights; writing into it is refused."""
        return guarded(self.decoded(self.dtype))

    def float_layer(self) -> nn.Module:
        """The float layer with the decoded weight in `dtype`; it shares the bias."""
        layer: Any = self._empty()
        layer.weight = nn.Parameter(self._decode(self.dtype).contiguous(), requires_grad=False)
        layer.bias = self.bias
        found: nn.Module = layer.train(self.training)
        return found

    def _empty(self) -> nn.Module:
        """A layer of class `replaces` with tensors on the meta device."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._decoded = self._decoder = None  # they hold arrays that may be about to move
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"{list(self.shape)}, {self.form}, {self.mode}"


class QuantizedLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc, override]
    """Stands in for nn.Linear: x [..., I] -> [..., O]."""

    replaces = nn.Linear
    kind = "linear"

    def __init__(self, original: nn.Linear, form: str, meta: Meta, shared: SharedCodebooks) -> None:
        super().__init__(original, form, meta, shared)
        self.in_features, self.out_features = original.in_features, original.out_features

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        if not torch.compiler.is_compiling() and self.mode == "streaming" and way(x.device) == "triton":
            return get_format(self.form).linear(x, self.stored, self.shape, self.meta, self.bias)
        return F.linear(x, self.decoded(x.dtype), self.bias)

    def _empty(self) -> nn.Module:
        return nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):  # type: ignore[misc, override]
    """Stands in for nn.Conv2d with one group: x [N, I, H, W] -> [N, O, H', W']."""

    replaces = nn.Conv2d
    kind = "conv2d"

    def __init__(self, original: nn.Conv2d, form: str, meta: Meta, shared: SharedCodebooks) -> None:
        super().__init__(original, form, meta, shared)
        self.in_channels, self.out_channels = original.in_channels, original.out_channels
        self.kernel_size, self.stride = original.kernel_size, original.stride
        self.padding, self.dilation, self.groups = original.padding, original.dilation, original.groups
        self.padding_mode = original.padding_mode

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return F.conv2d(x, self.decoded(x.dtype), self.bias, self.stride, self.padding, self.dilation, self.groups)

    def _empty(self) -> nn.Module:
        shape: dict[str, Any] = {"kernel_size": self.kernel_size, "stride": self.stride, "padding": self.padding}
        shape |= {"dilation": self.dilation, "groups": self.groups, "bias": self.bias is not None}
        return nn.Conv2d(self.in_channels, self.out_channels, **shape, device="meta")


LAYERS: tuple[type[QuantizedLayer], ...] = (QuantizedLinear, QuantizedConv2d)


def kind_of(module: nn.Module) -> str | None:
    """`linear` or `conv2d` for a float layer that has a quantized counterpart, else None."""
    if isinstance(module, QuantizedLayer):
        return None
    return next((layer.kind for layer in LAYERS if isinstance(module, layer.replaces)), None)


def set_mode(model: nn.Module, mode: str) -> None:
    """Put every quantized layer of `model` into "resident" or "streaming" mode."""
    if mode not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            module.mode, module.auto, module._decoded, module._decoder = mode, False, None, None
