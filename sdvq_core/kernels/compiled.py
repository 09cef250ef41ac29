"""numba's compiler as this room uses it: without the interpreter's lock, cached on disk where possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: machine code for `function`, made when it is first called with a set of types."""
    found: Callable[..., Any]
    try:
        found = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no folder to cache in
        found = numba.njit(nogil=True, error_model="numpy")(function)
    return found
