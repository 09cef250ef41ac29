"""Which compiled kernels a device has: numba on the CPU, Triton on a CUDA GPU, or plain torch where neither works."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch

WAYS = {"cpu": "numba", "cuda": "triton"}


def way(device: torch.device) -> str:
    """What computes on `device`: "numba", "triton" or "torch"."""
    found = WAYS.get(device.type, "")
    return found if found and not missing(found) else "torch"


@cache
def missing(name: str) -> str:
    """Why compiled kernels cannot be had from library `name`, or "": a broken installation is no reason to fail."""
    if find_spec(name) is None:
        return f"{name} is not installed"
    try:
        import_module(name)
    except Exception as error:  # whatever a broken installation raises
        return f"{name} cannot be imported ({(str(error).splitlines() or [type(error).__name__])[0]})"
    return ""


@cache
def warn_slow(reason: str) -> None:
    """Say once why plain torch does what a compiled kernel would."""
    warnings.warn(f"weights are decoded by plain torch, which is slower: {reason}", stacklevel=5)
