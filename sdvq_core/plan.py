"""Rules -> which layer gets which quantizer, and what that will weigh, exactly, before anything is computed.

Rules are tried in order and the last match wins. `vqdm_rules` is the choice of layers of arXiv 2409.00492: every Linear
and Conv2d but the first and last convolution and all that serves the time embedding.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

from sdvq_core.errors import ConfigError
from sdvq_core.ledger import build_ledger, file_nbytes, stored_specs
from sdvq_core.nn import kind_of
from sdvq_core.qtensor import Meta, TensorSpec
from sdvq_core.quantizers import Quantizer
from sdvq_core.records import Fallback, Ledger

MIN_CHANNELS = 16
VQDM_KEEPS = ("conv_in", "conv_out", "time_embedding.*", "add_embedding.*", "*.time_emb_proj")


@dataclass(frozen=True)
class Rule:
    """Layers whose name matches the glob `pattern` get `quantizer`, or stay in 16 bits when it is None."""

    pattern: str
    quantizer: Quantizer | None
    optional: bool = False


def vqdm_rules(quantizer: Quantizer) -> list[Rule]:
    """VQDM's choice of layers for one quantizer."""
    return [Rule("*", quantizer), *(Rule(pattern, None, optional=True) for pattern in VQDM_KEEPS)]


@dataclass(frozen=True)
class Assignment:
    """One layer and its quantizer."""

    name: str
    kind: str
    shape: tuple[int, ...]
    quantizer: Quantizer

    @property
    def spec(self) -> dict[str, TensorSpec]:
        return self.quantizer.spec(self.shape)

    @property
    def layout(self) -> Meta:
        return self.quantizer.layout(self.shape)


@dataclass(frozen=True)
class CompressionPlan:
    """What to do with every layer of one model. `kept` holds the shape of every tensor that stays in 16 bits."""

    assignments: tuple[Assignment, ...]
    kept: Mapping[str, tuple[int, ...]] = field(repr=False)
    fallbacks: tuple[Fallback, ...] = ()

    @classmethod
    def resolve(cls, model: nn.Module, rules: Sequence[Rule]) -> CompressionPlan:
        """Match `rules` against the Linear and Conv2d layers of `model` (which may be on the meta device)."""
        layers = {name: module for name, module in model.named_modules() if kind_of(module)}
        _check_rules(layers, rules)
        assignments, fallbacks = [], []
        for name, module in layers.items():
            quantizer = next((rule.quantizer for rule in reversed(rules) if fnmatchcase(name, rule.pattern)), None)
            if quantizer is None:
                continue
            reason = _obstacle(module, quantizer)
            if reason:
                fallbacks.append(Fallback(name, reason))
            else:
                assignments.append(Assignment(name, str(kind_of(module)), _shape(module), quantizer))
        compressed = {f"{item.name}.weight" for item in assignments}
        kept = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in compressed}
        return cls(tuple(assignments), kept, tuple(fallbacks))

    @property
    def weights(self) -> int:
        """Parameters of the model."""
        return sum(math.prod(item.shape) for item in self.assignments) + sum(map(math.prod, self.kept.values()))

    @property
    def stored(self) -> dict[str, TensorSpec]:
        """Every tensor that the artifact will hold."""
        return stored_specs({item.name: item.spec for item in self.assignments}, self.kept)

    def only(self, names: Container[str], reason: str) -> CompressionPlan:
        """The plan of the layers called `names`; the others stay in 16 bits, for `reason`."""
        left = [item for item in self.assignments if item.name not in names]
        kept = {**self.kept, **{f"{item.name}.weight": item.shape for item in left}}
        fallbacks = tuple(Fallback(item.name, reason) for item in left)
        assignments = tuple(item for item in self.assignments if item.name in names)
        return CompressionPlan(assignments, kept, self.fallbacks + fallbacks)

    def ledger(self, metadata: Mapping[str, str]) -> Ledger:
        """The exact ledger of the artifact, given the metadata that its file will carry."""
        stored = self.stored
        shapes = [item.shape for item in self.assignments]
        return build_ledger(shapes, stored, file_nbytes(stored, metadata), self.fallbacks)


def _check_rules(layers: Mapping[str, nn.Module], rules: Sequence[Rule]) -> None:
    for rule in rules:
        if not rule.optional and not any(fnmatchcase(name, rule.pattern) for name in layers):
            examples = ", ".join(list(layers)[:3]) or "none"
            raise ConfigError(f"the rule {rule.pattern!r} matches no layer; this model has layers such as {examples}")


def _obstacle(module: nn.Module, quantizer: Quantizer) -> str:
    shape = _shape(module)
    if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
        return "grouped convolutions and padding other than zeros are not supported"
    if min(shape[:2]) < MIN_CHANNELS:
        return f"fewer than {MIN_CHANNELS} input or output channels"
    if quantizer.estimate_nbytes(shape) >= 2 * math.prod(shape):
        return f"{quantizer} would take more bytes than 16-bit weights"
    return ""


def _shape(module: nn.Module) -> tuple[int, ...]:
    return tuple(module.weight.shape)  # type: ignore[arg-type]
