"""Which compiled kernels a device has: numba on the CPU, Triton on a CUDA GPU, or plain torch where neither works.

A kernel that fails (no C compiler, a broken driver, a compiler that refuses) is not tried again in this process: torch
computes the same, and one warning names the reason.
"""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch

from sdvq_core.memory import is_out_of_memory

WAYS = {"cpu": "numba", "cuda": "triton"}
_FAILED: set[tuple[object, ...]] = set()
_Found = TypeVar("_Found")


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


def attempt(
    kernel: tuple[object, ...], run: Callable[[], _Found], warn: Callable[[str], None] | None = None
) -> _Found | None:
    """What `run` makes by a compiled kernel; None where that fails, and at once where it did before.

    kernel: all that it is compiled for. Memory that runs out says nothing about a kernel, and is raised. warn: what is
    told the reason, `warn_slow` by default.
    """
    if kernel in _FAILED:
        return None
    try:
        return run()
    except Exception as error:  # a compiler and a driver raise what they like
        if is_out_of_memory(error):
            raise
        _FAILED.add(kernel)
        (warn or warn_slow)(f"{kernel[0]} fails ({reason(error)})")
    return None


def reason(error: Exception) -> str:
    """`error` in one line that is the same whenever it comes again."""
    if isinstance(error, subprocess.CalledProcessError):  # its own words name files that exist for a moment
        command = error.cmd if isinstance(error.cmd, str) else str(error.cmd[0])
        return f"{Path(command.split()[0]).name} ended with status {error.returncode}"
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def warn_obstacle(device: torch.device, obstacle: str = "") -> None:
    """Say once why no compiled kernel works on `device`: `obstacle`, or a library that cannot be had."""
    library = WAYS.get(device.type, "")
    obstacle = obstacle or (missing(library) if library else "")
    if obstacle:
        warn_slow(obstacle)


@cache
def warn_slow(reason: str) -> None:
    """Say once why plain torch does what a compiled kernel would."""
    warnings.warn(f"a compiled kernel is replaced by plain torch, which is slower: {reason}", stacklevel=5)


@cache
def warn_exact(reason: str) -> None:
    """Say once why a product is computed in the dtype of its inputs although float8 was asked for."""
    warnings.warn(f"a product is not computed in float8: {reason}", stacklevel=5)
