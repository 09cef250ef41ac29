"""The `quantization_config` of diffusers for SDVQ: what an artifact is, or what is to be made while a model loads.

`SdvqConfig("rvq:bits=3")` is a request, with a word as in every column of a comparison; `manifest` is None. The
`quantization_config` in an artifact's config.json is a manifest (`store.manifest.Manifest`).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from diffusers.quantizers.quantization_config import QuantizationConfigMixin

from sdvq_core.errors import ConfigError
from sdvq_core.store.manifest import QUANT_METHOD, Manifest


class SdvqMethod(StrEnum):
    """diffusers asks for `.value`."""

    SDVQ = QUANT_METHOD


class SdvqConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """recipe: how to compress while loading, `rvq:bits=3` or `@preview`; what needs no trajectories of the original.

    modules_to_not_convert: names or patterns of layers that stay as they are, as `mid_block` or `*.attn2.to_k`; a name
    stands for all below it. settings: a manifest's entries, when diffusers reads an artifact.
    """

    def __init__(self, recipe: str = "", modules_to_not_convert: Sequence[str] | None = None, **settings: Any) -> None:
        self.quant_method = SdvqMethod.SDVQ
        self.recipe = str(recipe)
        self.modules_to_not_convert = list(modules_to_not_convert or ())
        settings.pop("quant_method", None)
        stored = {"recipe": self.recipe, "quant_method": QUANT_METHOD, **settings}
        self.manifest = Manifest.from_json(stored) if settings else None
        if self.manifest is None and not self.recipe:
            raise ConfigError("name what to make of the model, as SdvqConfig('rvq:bits=3') or SdvqConfig('@preview')")

    @classmethod
    def of(cls, manifest: Manifest) -> SdvqConfig:
        """The config of an artifact."""
        config = cls(manifest.recipe or "unknown")
        config.manifest = manifest
        return config

    def to_dict(self) -> dict[str, Any]:
        if self.manifest is not None:
            return self.manifest.to_json()
        return {
            "quant_method": QUANT_METHOD,
            "recipe": self.recipe,
            "modules_to_not_convert": self.modules_to_not_convert,
        }

    def to_diff_dict(self) -> dict[str, Any]:
        """What `repr` shows: the entries without the layer table."""
        return {name: value for name, value in self.to_dict().items() if name != "layers"}
