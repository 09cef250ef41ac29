"""What transformers must know of us: `PipelineQuantizationConfig` of diffusers asks both libraries for a method.

SDVQ compresses the UNet; a text encoder is refused once its class is known, with what to write instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from sdvq_core.integrations.encoding import not_a_unet
from sdvq_core.store.manifest import QUANT_METHOD


class NoTextConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """Takes what `SdvqConfig` takes, which diffusers checks."""

    def __init__(self, recipe: str = "", modules_to_not_convert: Sequence[str] | None = None, **settings: Any) -> None:
        self.quant_method = QUANT_METHOD


class NoTextQuantizer(HfQuantizer):  # type: ignore[misc]
    """Refuses every model of transformers before it is loaded."""

    def preprocess_model(self, model: Any, dtype: Any = None, **_: Any) -> None:
        raise not_a_unet(model)

    @property
    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def register(known: Any) -> None:
    """Name the method in `transformers.quantizers.auto`."""
    known.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = NoTextConfig
    known.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = NoTextQuantizer
