"""A decoded weight to look at. Reading it works as for every tensor; writing into it raises, because codes stay codes.

Without this, whoever adds to `layer.weight.data` (to fuse a LoRA, say) would change nothing, silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sdvq_core.errors import ConfigError


class DecodedWeight(Tensor):
    """What `QuantizedLayer.weight` gives, and every view of it; what is computed from it is a plain tensor."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        target = next(iter((*args, *options.values())), None) if _writes(func) else options.get("out")
        if isinstance(target, cls):
            raise ConfigError(
                "the weight of a compressed layer is decoded from codes and cannot be written to; keep a LoRA as an "
                "adapter (set_adapters) instead of fusing it, or call dequantize() on the model first"
            )
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **options)
            ours = next((item for item in args if isinstance(item, cls)), None)
            if isinstance(found, Tensor) and ours is not None and _same_memory(found, ours):
                return found.as_subclass(cls)
        return found


def guarded(weight: Tensor) -> Tensor:
    """`weight`, as it is but for writing; just as it is while torch.compile traces, which follows no such class."""
    return weight if torch.compiler.is_compiling() else weight.as_subclass(DecodedWeight)


def _writes(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in ("__set__", "__setitem__") or (name.startswith("__i") and hasattr(int, f"__{name[3:]}"))


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.layout == torch.strided and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
