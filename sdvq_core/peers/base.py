"""What a peer is: another library's quantizer as an arm, with the library's own arithmetic and its own stored bytes.

The word is ``lib.NAME:knob=value``, so that nobody takes it for a method of ours. A peer is handed the layers in
float16, as models ship. ``layers=same`` (the default) hands it every Linear and Conv2d that our own arms compress, a
convolution [O, I, kh, kw] as a matrix [O, I * kh * kw] where the library has no path for convolutions; ``layers=own``
leaves the choice to the library's integration with diffusers, where there is one, or gives it every Linear, and what
it leaves counts in 16 bits. Bytes are those of the tensors that the library keeps for a weight; what only describes
their layout is not counted, as it is not in our own files.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from sdvq_core.errors import ConfigError
from sdvq_core.knobs import Knob, Registry, Settings, Value, knob, summary
from sdvq_core.qtensor import TensorSpec

PREFIX = "lib."
EXTRA = "pip install -r requirements-peers.txt"
Layer = nn.Linear | nn.Conv2d
_REFUSALS = (ArithmeticError, AssertionError, NotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True, eq=False)
class Stored:
    """What a library keeps of one weight: every array's spec by name, and the weight that they decode to.

    decode: the library decodes it once more, where it can; what `bench` times.
    """

    spec: Mapping[str, TensorSpec]
    weight: Tensor
    decode: Callable[[], Tensor] | None = None

    @classmethod
    def of(cls, weight: Tensor, decode: Callable[[], Tensor] | None = None, **parts: list[Tensor]) -> Stored:
        """From the library's own tensors, by part of the ledger: ``Stored.of(weight, codes=[...], scales=[...])``."""
        spec = {
            f"{part}.{number}": TensorSpec(tuple(tensor.shape), tensor.dtype, part)
            for part, tensors in parts.items()
            for number, tensor in enumerate(tensors)
        }
        return cls(spec, weight.detach(), decode)


@dataclass(frozen=True)
class PeerInfo:
    """A line of the listing; `needs` is what pip installs."""

    name: str
    label: str
    summary: str
    knobs: tuple[Knob, ...]
    bit_widths: tuple[float, ...]
    installed: bool
    needs: str


@dataclass(frozen=True)
class Peer(Settings):
    """Base of all peers; `package` is the distribution that holds the library."""

    package: ClassVar[str]

    layers: str = knob("same", "Layers: as our arms, or as the library chooses", choices=("same", "own"))

    @classmethod
    def version(cls) -> str | None:
        """The installed version of the library, None where it is missing."""
        try:
            return version(cls.package)
        except PackageNotFoundError:
            return None

    @classmethod
    def from_bits(cls, bits: float, given: Mapping[str, Value]) -> dict[str, Value]:
        raise ConfigError(f"{cls.name} takes bits as a knob")  # pragma: no cover - asked only of those without the knob

    @property
    def title(self) -> str:
        """What people read: `HQQ (library) 4-bit, its own layers`."""
        return self.method if self.layers == "same" else f"{self.method}, its own layers"

    @property
    def method(self) -> str:
        """The library and what it does."""
        return f"{self.label} {self.nominal_bits:g}-bit"

    @abstractmethod
    def quantize(self, layer: Layer) -> Stored:
        """One float16 layer, quantized and decoded by the library, which may raise what it likes."""

    def attempt(self, layer: Layer) -> Stored | str:
        """`quantize`, or in one line why the library would not."""
        try:
            return self.quantize(layer)
        except torch.OutOfMemoryError:
            raise
        except _REFUSALS as error:
            return f"{self.label} refused it: {(str(error).splitlines() or [type(error).__name__])[0]}"

    def own(self, unet: nn.Module) -> Iterator[tuple[str, Stored | str]]:
        """(name, `attempt`) of every layer of a float16 UNet that the library quantizes by itself: each Linear."""
        for name, module in unet.named_modules():
            if isinstance(module, nn.Linear):
                yield name, self.attempt(module)


_REGISTRY: Registry[Peer] = Registry("library")
P = TypeVar("P", bound=type[Peer])


def register(name: str, label: str) -> Callable[[P], P]:
    """Class decorator: make a peer known under `lib.name`, shown as `label`."""

    def add(cls: P) -> P:
        _REGISTRY.add(PREFIX + name, label, cls)
        return cls

    return add


def parse(word: str) -> Peer:
    """The peer of `lib.hqq:bits=4`; ConfigError also where its library is not installed."""
    peer = _REGISTRY.parse(word)
    if peer.version() is None:
        raise ConfigError(f"{word} needs {peer.package}, which is not installed: {EXTRA}")
    return peer


def catalogue() -> list[PeerInfo]:
    """Every peer that this version knows, installed or not."""
    return [
        PeerInfo(cls.name, cls.label, summary(cls), cls.knobs(), cls.bit_widths, cls.version() is not None, cls.package)
        for cls in _REGISTRY
    ]


def as_matrix(layer: Layer) -> Tensor:
    """The weight as [O, I * kh * kw], contiguous."""
    return layer.weight.detach().flatten(1).contiguous()
