"""A number of bits as a target: which quantizers a layer may get, and how many bits per weight all layers may take.

`aq:bits=2.6` is a target among aq's own widths. Which layer gets which is solved per model from measured damages
(`allocation.py`); before they are measured, from what rate-distortion theory expects: a layer of n weights at b bits
loses n 4^-b. The bits count every byte of codes, codebooks and scales (`bits_per_quantized_weight` of the ledger).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from sdvq_core.allocation import allocate
from sdvq_core.errors import ConfigError
from sdvq_core.knobs import read_word
from sdvq_core.plan import CompressionPlan, Rule, vqdm_rules
from sdvq_core.quantizers import Quantizer, catalogue, make
from sdvq_core.store import blank_metadata

_MOST = 4  # candidates of a word, the widths nearest to its bits
_TRIES = 8


@dataclass(frozen=True)
class Target:
    """among: what a layer may get, two or more. bits: most per quantized weight, codebooks and scales included."""

    among: tuple[Quantizer, ...]
    bits: float

    def __post_init__(self) -> None:
        if len(set(self.among)) < 2:
            raise ConfigError("name two quantizers or more to choose among, such as tcq:bits=2 and tcq:bits=4")
        if not (math.isfinite(self.bits) and self.bits > 0):
            raise ConfigError(f"bits must be a number above 0, got {self.bits}")

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.among))} at {self.bits:g} bits"


def parse_target(word: str) -> Target | None:
    """The target of a word whose bits lie between two widths of its quantizer; None for every other word."""
    spec = read_word(word)
    info = next((info for info in catalogue() if info.name == spec["name"]), None)
    bits = spec.get("bits")
    if info is None or not isinstance(bits, int | float) or bits in info.bit_widths:
        return None
    low, high = min(info.bit_widths), max(info.bit_widths)
    if not low < bits < high:
        return None
    widths = sorted(sorted(info.bit_widths, key=lambda width: abs(width - bits))[:_MOST])
    return Target(tuple(make({**spec, "bits": width}) for width in widths), float(bits))


def solve(model: nn.Module, target: Target, damage: Mapping[str, Sequence[float]]) -> tuple[Rule, ...]:
    """The rules with the least sum of damages whose ledger, shared codebooks included, keeps to the target.

    model: the UNet, on the meta device or not. damage: by layer, in the order of `target.among`.
    """
    shapes = _shapes(model, target)
    nbytes = {name: [one.estimate_nbytes(shape) for one in target.among] for name, shape in shapes.items()}
    total = sum(map(math.prod, shapes.values()))
    budget = int(total * target.bits / 8)
    for _ in range(_TRIES):
        least = sum(map(min, nbytes.values()))
        if budget < least:
            raise ConfigError(
                f"{target} cannot be reached on this model; the least is {_least(model, target, nbytes):.3f} bits "
                "per quantized weight"
            )
        rules = _rules(target, allocate(nbytes, damage, budget))
        over = _code_nbytes(model, rules) - total * target.bits / 8
        if over <= 0:
            return rules
        budget -= math.ceil(over)
    raise ConfigError(f"{target}: no assignment was found; choose more bits or smaller codebooks")


def solution_key(fingerprint: str, target: Target) -> str:
    """Under which a recipe keeps its solution: it counts for one model and one target."""
    return f"{fingerprint}: {target}"


def guess(model: nn.Module, target: Target) -> tuple[Rule, ...]:
    """Rules of about the size that measured damages will give."""
    expected = {
        name: [math.prod(shape) * 4.0**-one.nominal_bits for one in target.among]
        for name, shape in _shapes(model, target).items()
    }
    return solve(model, target, expected)


def _shapes(model: nn.Module, target: Target) -> dict[str, tuple[int, ...]]:
    """The layers that every quantizer of the target can take."""
    plans = [CompressionPlan.resolve(model, tuple(vqdm_rules(one))) for one in target.among]
    names = set.intersection(*({item.name for item in plan.assignments} for plan in plans))
    return {item.name: item.shape for item in plans[0].assignments if item.name in names}


def _rules(target: Target, chosen: Mapping[str, int]) -> tuple[Rule, ...]:
    """VQDM's choice of layers with the quantizer that most layers get, then the others by name."""
    most = max(range(len(target.among)), key=lambda index: sum(found == index for found in chosen.values()))
    others = [Rule(name, target.among[index]) for name, index in chosen.items() if index != most]
    return (*vqdm_rules(target.among[most]), *others)


def _code_nbytes(model: nn.Module, rules: Sequence[Rule]) -> int:
    plan = CompressionPlan.resolve(model, rules)
    ledger = plan.ledger(blank_metadata(len(plan.assignments)))
    return ledger.tensor_bytes - ledger.parts["kept"]


def _least(model: nn.Module, target: Target, nbytes: Mapping[str, Sequence[int]]) -> float:
    smallest = {name: sizes.index(min(sizes)) for name, sizes in nbytes.items()}
    weights = sum(map(math.prod, _shapes(model, target).values()))
    return 8 * _code_nbytes(model, _rules(target, smallest)) / weights
