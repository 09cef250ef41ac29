"""SDVQ as a quantization method of diffusers: `from_pretrained(ARTIFACT)` and `save_pretrained` of a UNet."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from sdvq_core.errors import StoreError
from sdvq_core.nn import QuantizedLayer, SharedCodebooks, swap_spec
from sdvq_core.store.manifest import QUANT_METHOD, Manifest


class SdvqMethod(StrEnum):
    """diffusers asks for `.value`."""

    SDVQ = QUANT_METHOD


class SdvqConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The `quantization_config` of an artifact; see `store.manifest.Manifest`."""

    def __init__(self, **settings: Any) -> None:
        self.quant_method = SdvqMethod.SDVQ
        self.settings = {**settings, "quant_method": QUANT_METHOD}
        self.manifest = Manifest.from_json(self.settings)

    def to_dict(self) -> dict[str, Any]:
        return dict(self.settings)

    def to_diff_dict(self) -> dict[str, Any]:
        """What `repr` shows: the settings without the layer table."""
        return {name: value for name, value in self.settings.items() if name != "layers"}


class SdvqQuantizer(DiffusersQuantizer):  # type: ignore[misc]
    """Loads artifacts and saves them again; compressing is `sdvq_core.compress`'s work."""

    quantization_config: SdvqConfig

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, *_: Any, **__: Any
    ) -> bool:
        owner, _dot, name = param_name.rpartition(".")
        module = model.get_submodule(owner)
        return isinstance(module, QuantizedLayer | SharedCodebooks) and name in module._buffers

    def check_quantized_param_shape(self, param_name: str, current: Tensor, loaded: Tensor) -> None:
        raise StoreError(f"{param_name} has the shape {list(loaded.shape)}, its layer needs {list(current.shape)}")

    def create_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, target_device: torch.device,
        state_dict: dict[str, Tensor], *_: Any, **__: Any,
    ) -> None:  # fmt: skip
        owner, _sep, name = param_name.rpartition(".")
        model.get_submodule(owner)._buffers[name] = state_dict[param_name].to(target_device)  # never cast

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
        for name, entry in self.quantization_config.manifest.layers.items():
            swap_spec(model, name, entry.format, entry.meta, entry.shape)
        model.config["quantization_config"] = self.quantization_config  # type: ignore[index,operator]

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        absent = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
        if absent:
            raise StoreError(f"the artifact lacks the tensor {absent[0]}")
        return model

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Kept tensors go back to float16, as they came, so that the saved folder is the artifact again."""
        whole = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state_dict.items()}
        return whole, {}

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False
