"""Methods of a class of diffusers that look first whether their model is compressed, and if so do it our way.

The class itself is taught, once: a subclass would be turned down by those that ask for the very class (`from_pipe`),
and an attribute of the instance does not know its model. To models that are not compressed nothing changes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from sdvq_core.store.manifest import QUANT_METHOD

Way = Callable[..., Any]  # (the class's own method, model, *args, **kwargs)
_MARK = "_sdvq_way"


def is_compressed(model: Any) -> bool:
    """Whether `model` holds compressed layers of ours, as diffusers sees it."""
    return bool(getattr(model, "is_quantized", False)) and getattr(model, "quantization_method", "") == QUANT_METHOD


def teach(cls: type[nn.Module], ways: Mapping[str, Way]) -> None:
    """Let compressed models of class `cls` answer by `ways`; what is taught already stays."""
    for name, way in ways.items():
        own = getattr(cls, name, None)
        if own is not None and not hasattr(own, _MARK):
            setattr(cls, name, _taught(own, way))


def _taught(own: Callable[..., Any], way: Way) -> Callable[..., Any]:
    @functools.wraps(own)
    def method(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if is_compressed(model):
            return way(own, model, *args, **kwargs)
        return own(model, *args, **kwargs)

    setattr(method, _MARK, True)
    return method
