"""What a quantizer is: a frozen dataclass whose fields are its settings, registered under a name.

A new method on an existing format is one new file in this room; the command line, the form in the UI, the check of
presets and the contract tests find it by themselves.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

from torch import Tensor

from sdvq_core.knobs import Knob, Registry, Settings, Value, knob, summary
from sdvq_core.qtensor import Meta, QuantizedTensor, TensorSpec, get_format
from sdvq_core.records import LayerStats

__all__ = [
    "Encoder",
    "Knob",
    "Quantizer",
    "QuantizerInfo",
    "Value",
    "catalogue",
    "knob",
    "make",
    "parse",
    "register",
]


class Encoder(Protocol):
    """weight, statistics -> compressed weight."""

    def __call__(self, weight: Tensor, stats: LayerStats | None = None) -> QuantizedTensor: ...


@dataclass(frozen=True)
class QuantizerInfo:
    """Enough to draw a form: what the method is called, what it does, its knobs and the bit widths it offers."""

    name: str
    label: str
    summary: str
    knobs: tuple[Knob, ...]
    bit_widths: tuple[float, ...]


@dataclass(frozen=True)
class Quantizer(Settings):
    """Base of all methods; `algorithm` counts changes of the search that change codes."""

    format: ClassVar[str]
    calibrated: ClassVar[bool] = False  # whether it is meant to be given statistics of the layer's inputs

    @abstractmethod
    def layout(self, shape: Sequence[int]) -> Meta:
        """The format's meta for a weight of `shape`."""

    @abstractmethod
    def quantize(self, weight: Tensor, stats: LayerStats | None = None) -> QuantizedTensor:
        """weight [O, I] or [O, I, kh, kw], finite -> its compressed form; `stats` steer the error where given."""

    def sharing_key(self, shape: Sequence[int]) -> str:
        """Name of the codebook set that a layer of `shape` shares with others, "" if it has its own."""
        return str(self.layout(shape).get("shared", ""))

    def fit_shared(self, weights: Sequence[Tensor]) -> Tensor | None:
        """One codebook set for all `weights`, each asked for once; None for a fixed set that `quantize` knows.

        Asked only where `sharing_key` is not "".
        """
        return None

    def bound_to(self, codebooks: Tensor) -> Encoder:
        """`quantize` with a shared set, from `fit_shared` or from a layer that has it; itself where sets are fixed."""
        return self.quantize

    def spec(self, shape: Sequence[int]) -> dict[str, TensorSpec]:
        """Every array that `quantize` will store for `shape`."""
        return get_format(self.format).spec(shape, self.layout(shape))

    def estimate_nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of `quantize(weight).nbytes`, exactly; a shared codebook is counted in the ledger, not here."""
        return sum(part.nbytes for part in self.spec(shape).values() if not part.shared)


_REGISTRY: Registry[Quantizer] = Registry("quantizer")
Q = TypeVar("Q", bound=type[Quantizer])


def register(name: str, label: str) -> Callable[[Q], Q]:
    """Class decorator: make a quantizer known under `name`, shown as `label`."""

    def add(cls: Q) -> Q:
        _REGISTRY.add(name, label, cls)
        return cls

    return add


def catalogue() -> list[QuantizerInfo]:
    """Every registered quantizer, by name."""
    return [QuantizerInfo(cls.name, cls.label, summary(cls), cls.knobs(), cls.bit_widths) for cls in _REGISTRY]


def make(spec: Mapping[str, Value]) -> Quantizer:
    """The quantizer of a spec such as {"name": "rtn", "bits": 4}; `bits` works for every method."""
    return _REGISTRY.make(spec)


def parse(text: str) -> Quantizer:
    """The quantizer of `rtn`, `rtn:bits=4,group_size=64`; ConfigError says what is wrong."""
    return _REGISTRY.parse(text)
