"""The sums of one unit of calibration on their way to those of the others: one vector per distinct input.

A safetensors file; its metadata has the rows and the weight of each. It appears whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sdvq_core.errors import StoreError
from sdvq_core.store.tensor_file import write_tensors

_FACTS = "sums"


class UnitSum(NamedTuple):
    """What a unit has of one distinct input: `length` float32 values, made when they are written; rows and weight."""

    length: int
    values: Callable[[], Tensor]
    rows: int
    weight: float


def write_unit(path: Path, sums: Sequence[UnitSum]) -> None:
    """Write the sums of a unit, one vector after another."""
    specs = {f"{number:05}": (torch.float32, (found.length,)) for number, found in enumerate(sums)}
    facts = json.dumps([[found.rows, found.weight] for found in sums])
    write_tensors(path, specs, lambda name: sums[int(name)].values(), {_FACTS: facts})


def read_sum(path: Path, number: int) -> tuple[Tensor, int, float]:
    """(values, rows, weight) of one distinct input."""
    try:
        with safe_open(path, "pt") as file:
            rows, weight = json.loads(file.metadata()[_FACTS])[number]
            return file.get_tensor(f"{number:05}"), rows, weight
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is missing or damaged ({error}); remove it and calibrate again") from None
