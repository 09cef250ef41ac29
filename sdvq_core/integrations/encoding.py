"""What compresses a model while diffusers loads it. Reading needs no search code, so whoever has some puts it here.

`sdvq_core` itself does, with a function that imports `on_load` when it is first called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from sdvq_core.errors import ConfigError

if TYPE_CHECKING:
    from sdvq_core.store.manifest import Manifest

Progress = Callable[[Iterable[Any], int], Iterable[Any]]


class Encoder(Protocol):
    """Compresses one model."""

    def weights(self, model: nn.Module, files: Sequence[Path]) -> Collection[str]:
        """Names of the weights that will be compressed; `model` may be on the meta device. files: the checkpoint."""

    def compress(self, model: nn.Module, progress: Progress) -> tuple[Manifest, Mapping[str, str]]:
        """Put compressed layers into `model`, which holds the weights as they are stored -> manifest, report card."""


Factory = Callable[[str, Sequence[str]], Encoder]


_factories: list[Factory] = []


def provide(factory: Factory) -> None:
    """Make `factory` what `encoder` calls."""
    _factories[:] = [factory]


def encoder(recipe: str, keep: Sequence[str]) -> Encoder:
    """What makes `recipe` of a model but for the layers that match `keep`; ConfigError if it cannot be made so."""
    return _factories[0](recipe, keep)  # `import sdvq_core` has provided it


def not_a_unet(model: nn.Module, single_file: bool = False) -> ConfigError:
    """Why `model`, a component of diffusers or of transformers, is not compressed, and what to write instead."""
    advice = (
        "load the UNet by UNet2DConditionModel.from_single_file, and the pipeline with unet=…"
        if single_file
        else "for a pipeline pass components_to_quantize='unet'"
    )
    return ConfigError(f"SDVQ compresses a UNet2DConditionModel, not {type(model).__name__}; {advice}")
