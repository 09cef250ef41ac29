"""Settings as words: a frozen dataclass whose fields are its knobs, known under a name in a registry.

``name:knob=value,…`` is the word of an instance; knobs at their default are left out. Quantizers and the peers' arms
speak this one language.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, cast

from sdvq_core.errors import ConfigError

Value = int | float | str


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
class Settings(ABC):
    """Base: the instance *is* its settings: hashable, comparable, JSON-able.

    `algorithm` counts changes of what the same settings give; it is part of every cache key.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    bit_widths: ClassVar[tuple[float, ...]]
    algorithm: ClassVar[int] = 1

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


S = TypeVar("S", bound=Settings)


class Registry(Generic[S]):
    """Classes of settings by name; `kind` is what they are called in messages."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[S]] = {}

    def __iter__(self) -> Iterator[type[S]]:
        """Every registered class, by name."""
        return (cls for _, cls in sorted(self._classes.items()))

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def add(self, name: str, label: str, cls: type[S]) -> None:
        """Make `cls` known under `name`, shown as `label`."""
        cls.name, cls.label = name, label
        self._classes[name] = cls

    def make(self, spec: Mapping[str, Value]) -> S:
        """The instance of a spec such as {"name": "rtn", "bits": 4}; `bits` works for every class."""
        settings = dict(spec)
        name = str(settings.pop("name", ""))
        if name not in self._classes:
            raise ConfigError(f"unknown {self.kind} {name!r}; choose one of {', '.join(sorted(self._classes))}")
        cls = self._classes[name]
        knobs = {item.name: item for item in cls.knobs()}
        allowed = {"bits": _BITS, **knobs}
        unknown = sorted(map(str, set(settings) - set(allowed)))
        if unknown:
            raise ConfigError(f"{name} has no knob {unknown[0]!r}; it has {', '.join(allowed)}")
        settings = {key: allowed[key].check(name, value) for key, value in settings.items()}
        if "bits" in settings and "bits" not in knobs:
            settings |= cls.from_bits(float(settings.pop("bits")), settings)
        return cls(**settings)

    def parse(self, text: str) -> S:
        """The instance of `rtn`, `rtn:bits=4,group_size=64`; ConfigError says what is wrong."""
        return self.make(read_word(text))


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


def summary(cls: type) -> str:
    """First line of the docstring of `cls`."""
    return (cls.__doc__ or "").strip().splitlines()[0]


def _number(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
