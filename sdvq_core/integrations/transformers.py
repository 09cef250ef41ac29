"""What transformers must know of us: `PipelineQuantizationConfig` of diffusers asks both libraries for a method.

SDVQ compresses the UNet; a text encoder is refused with what to write instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from sdvq_core.errors import ConfigError


class NoTextConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """Takes what `SdvqConfig` takes, which diffusers checks, and refuses."""

    def __init__(self, recipe: str = "", modules_to_not_convert: Sequence[str] | None = None, **settings: Any) -> None:
        raise ConfigError("SDVQ compresses the UNet alone; pass components_to_quantize='unet'")
