"""Hugging Face ZeroGPU: a GPU is lent to a handler for the seconds that its job is expected to take. Absent elsewhere.

A lent GPU is another process: what a handler leaves in memory is gone, what it writes to the data folder stays.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

LEAST_SECONDS, MOST_SECONDS = 15, 300
LIMIT = "SDVQ_GPU_SECONDS"  # the most that one handler asks for


def on_gpu(handler: Callable[P, R], seconds: Callable[P, float]) -> Callable[P, R]:
    """`handler` with a GPU lent for `seconds` of its arguments; `handler` itself where nothing is lent."""
    spaces = _spaces()
    if spaces is None:
        return handler

    def duration(*arguments: P.args, **keywords: P.kwargs) -> int:
        return within_limit(seconds(*arguments, **keywords))

    lent: Callable[P, R] = spaces.GPU(handler, duration=duration)
    return lent


def within_limit(seconds: float) -> int:
    """Whole seconds that may be asked for."""
    try:
        most = int(os.environ.get(LIMIT, MOST_SECONDS))
    except ValueError:
        most = MOST_SECONDS
    return max(LEAST_SECONDS, min(round(seconds), most))


def _spaces() -> Any:
    """The package of Hugging Face Spaces where it lends GPUs; app.py has imported it before torch."""
    if not os.environ.get("SPACES_ZERO_GPU"):
        return None
    try:
        return importlib.import_module("spaces")
    except ImportError:
        return None
