"""What a quantizer is: a frozen dataclass whose fields are its settings, registered under a name.

A new method on an existing format is one new file in this room; the command line, the form in the UI, the check of
presets and the contract tests find it by themselves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, cast

from torch import Tensor

from sdvq_core.errors import ConfigError
from sdvq_core.qtensor import Meta, QuantizedTensor, TensorSpec, get_format
from sdvq_core.records import LayerStats

Value = int | float | str


class Encoder(Protocol):
    """weight, statistics -> compressed weight."""

    def __call__(self, weight: Tensor, stats: LayerStats | None = None) -> QuantizedTensor: ...


@dataclass(frozen=True)
class Knob:
    """One setting as a form shows it: either `choices`, or the bounds `low`..`high`, or free."""

    name: str
    label: str
    default: Value
    choices: tuple[Value, ...] = ()
    low: float | None = None
    high: float | None = None

    def check(self, owner: str, value: object) -> Value:
        """`value` in the knob's own type; ConfigError names what is allowed."""
        wanted = type(self.default)
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ConfigError(f"{owner}.{self.name} must be {self.allowed}, got {value!r}")
        try:
            found = wanted(value)
            exact = wanted is str or found == float(value)
        except (ValueError, OverflowError):
            exact = False
        if not exact or not self._holds(found):
            raise ConfigError(f"{owner}.{self.name} must be {self.allowed}, got {value}")
        return found

    def _holds(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    @property
    def allowed(self) -> str:
        """What would be accepted, in words."""
        if self.choices:
            return f"one of ({', '.join(map(str, self.choices))})"
        kind = {int: "a whole number", float: "a number", str: "a word"}[type(self.default)]
        return kind if self.low is None else f"{kind} from {self.low:g} to {self.high:g}"


_BITS = Knob("bits", "Bits", 3.0, (), 0.5, 16.0)  # what `make` takes for every method


def knob(
    default: Value, label: str, choices: Sequence[Value] = (), low: float | None = None, high: float | None = None
) -> Any:
    """A dataclass field that is a setting."""
    meta = {"label": label, "choices": tuple(choices), "low": low, "high": high}
    return dataclasses.field(default=default, metadata=meta)


@dataclass(frozen=True)
class QuantizerInfo:
    """Enough to draw a form: what the method is called, what it does, its knobs and the bit widths it offers."""

    name: str
    label: str
    summary: str
    knobs: tuple[Knob, ...]
    bit_widths: tuple[float, ...]


@dataclass(frozen=True)
class Quantizer(ABC):
    """Base of all methods. The instance *is* its settings: hashable, comparable, JSON-able.

    `algorithm` counts changes of the search that change codes; it is part of every cache key.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    format: ClassVar[str]
    bit_widths: ClassVar[tuple[float, ...]]
    algorithm: ClassVar[int] = 1
    calibrated: ClassVar[bool] = False  # whether it is meant to be given statistics of the layer's inputs

    def __post_init__(self) -> None:
        for item in type(self).knobs():
            object.__setattr__(self, item.name, item.check(self.name, getattr(self, item.name)))

    @classmethod
    def knobs(cls) -> tuple[Knob, ...]:
        """The settings, in order."""
        return tuple(Knob(f.name, default=cast(Value, f.default), **f.metadata) for f in dataclasses.fields(cls))

    @classmethod
    @abstractmethod
    def from_bits(cls, bits: float, given: Mapping[str, Value]) -> dict[str, Value]:
        """Knobs that give `bits` nominal code bits per weight, respecting those already `given`."""

    @property
    @abstractmethod
    def nominal_bits(self) -> float:
        """Code bits per weight, without scales and codebooks."""

    @abstractmethod
    def layout(self, shape: Sequence[int]) -> Meta:
        """The format's meta for a weight of `shape`."""

    @abstractmethod
    def quantize(self, weight: Tensor, stats: LayerStats | None = None) -> QuantizedTensor:
        """weight [O, I] or [O, I, kh, kw], finite -> its compressed form; `stats` steer the error where given."""

    def sharing_key(self, shape: Sequence[int]) -> str:
        """Name of the codebook set that a layer of `shape` shares with others, "" if it has its own."""
        return str(self.layout(shape).get("shared", ""))

    def fit_shared(self, weights: Sequence[Tensor]) -> Encoder:
        """`quantize` bound to one codebook set, fitted to `weights`; asked only where `sharing_key` is not ""."""
        return self.quantize

    def spec(self, shape: Sequence[int]) -> dict[str, TensorSpec]:
        """Every array that `quantize` will store for `shape`."""
        return get_format(self.format).spec(shape, self.layout(shape))

    def estimate_nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of `quantize(weight).nbytes`, exactly; a shared codebook is counted in the ledger, not here."""
        return sum(part.nbytes for part in self.spec(shape).values() if not part.shared)

    def to_spec(self) -> dict[str, Value]:
        """{"name": …, knob: value, …}; `make` is its inverse."""
        return {"name": self.name, **dataclasses.asdict(self)}

    def __str__(self) -> str:
        """`rtn:bits=4,group_size=64`; knobs at their default are left out. `parse` is its inverse."""
        changed = [
            f"{k.name}={getattr(self, k.name)}" for k in type(self).knobs() if getattr(self, k.name) != k.default
        ]
        return f"{self.name}:{','.join(changed)}" if changed else self.name

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that change with any setting or with the algorithm."""
        text = json.dumps([self.to_spec(), self.algorithm], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


_REGISTRY: dict[str, type[Quantizer]] = {}
Q = TypeVar("Q", bound=type[Quantizer])


def register(name: str, label: str) -> Callable[[Q], Q]:
    """Class decorator: make a quantizer known under `name`, shown as `label`."""

    def add(cls: Q) -> Q:
        cls.name, cls.label = name, label
        _REGISTRY[name] = cls
        return cls

    return add


def catalogue() -> list[QuantizerInfo]:
    """Every registered quantizer, by name."""
    return [
        QuantizerInfo(name, cls.label, (cls.__doc__ or "").strip().splitlines()[0], cls.knobs(), cls.bit_widths)
        for name, cls in sorted(_REGISTRY.items())
    ]


def make(spec: Mapping[str, Value]) -> Quantizer:
    """The quantizer of a spec such as {"name": "rtn", "bits": 4}; `bits` works for every method."""
    settings = dict(spec)
    name = str(settings.pop("name", ""))
    if name not in _REGISTRY:
        raise ConfigError(f"unknown quantizer {name!r}; choose one of {', '.join(sorted(_REGISTRY))}")
    cls = _REGISTRY[name]
    knobs = {item.name: item for item in cls.knobs()}
    allowed = {"bits": _BITS, **knobs}
    unknown = sorted(map(str, set(settings) - set(allowed)))
    if unknown:
        raise ConfigError(f"{name} has no knob {unknown[0]!r}; it has {', '.join(allowed)}")
    settings = {key: allowed[key].check(name, value) for key, value in settings.items()}
    if "bits" in settings and "bits" not in knobs:
        settings |= cls.from_bits(float(settings.pop("bits")), settings)
    return cls(**settings)


def parse(text: str) -> Quantizer:
    """The quantizer of `rtn`, `rtn:bits=4,group_size=64`; ConfigError says what is wrong."""
    return make(read_word(text))


def read_word(text: str) -> dict[str, Value]:
    """`rtn:bits=4` -> {"name": "rtn", "bits": 4}: what stands there, whether or not it can be made."""
    name, _, tail = text.strip().partition(":")
    spec: dict[str, Value] = {"name": name}
    for item in filter(None, (part.strip() for part in tail.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value:
            raise ConfigError(f"write settings as {name}:bits=4,group_size=64; got {item!r}")
        if key in spec:
            raise ConfigError(f"{name}: {key} is given twice")
        spec[key] = _number(value)
    return spec


def _number(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
