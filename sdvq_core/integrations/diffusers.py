"""SDVQ as a quantization method of diffusers: loads artifacts, compresses while loading, saves, dequantizes.

A float checkpoint is first put into the model as it is stored, mapped from its file; then layer after layer gives way
to its compressed form. The whole model is never in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.utils import logging
from torch import Tensor, nn

from sdvq_core.errors import ConfigError, StoreError
from sdvq_core.integrations.config import SdvqConfig, SdvqMethod
from sdvq_core.integrations.encoding import Encoder, encoder
from sdvq_core.integrations.manners import adopt, halves
from sdvq_core.ledger import SHARED_PREFIX
from sdvq_core.nn import QuantizedLayer, SharedCodebooks, choose_mode, quantized_layers, swap_spec
from sdvq_core.store.manifest import read_card

__all__ = ["SdvqConfig", "SdvqMethod", "SdvqQuantizer", "make_native", "register"]


class SdvqQuantizer(DiffusersQuantizer):  # type: ignore[misc]
    """What diffusers asks while it loads, saves and dequantizes a model. names: of the model's own tensors."""

    quantization_config: SdvqConfig

    def __init__(self, quantization_config: SdvqConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self.names: frozenset[str] = frozenset()
        self.card: Mapping[str, str] = {}
        self._dtype = torch.float32
        self._files: list[Path] = []
        self._encoder: Encoder | None = None
        self._encoded: Collection[str] = ()
        if quantization_config.manifest is None:
            self._encoder = encoder(quantization_config.recipe, quantization_config.modules_to_not_convert)

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        if self._encoder is not None and isinstance(device_map, dict) and len(set(device_map.values())) > 1:
            raise ConfigError("a model is compressed on one device while it loads; pass a device_map such as 'cpu'")

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype:
        self._dtype = torch_dtype or torch.float32
        return self._dtype

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        self._files = [Path(file) for file in checkpoint_files]
        return loaded_keys

    @property
    def supports_parallel_loading(self) -> bool:
        return self._encoder is None

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, *_: Any, **__: Any
    ) -> bool:
        owner, _dot, name = param_name.rpartition(".")
        module = model.get_submodule(owner)
        stored = isinstance(module, QuantizedLayer | SharedCodebooks) and name in module._buffers
        return stored or param_name in self._encoded

    def check_quantized_param_shape(self, param_name: str, current: Tensor, loaded: Tensor) -> None:
        raise StoreError(f"{param_name} has the shape {list(loaded.shape)}, its layer needs {list(current.shape)}")

    def create_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, target_device: torch.device,
        state_dict: dict[str, Tensor], *_: Any, **__: Any,
    ) -> None:  # fmt: skip
        owner, _sep, name = param_name.rpartition(".")
        module, value = model.get_submodule(owner), state_dict[param_name].to(target_device)  # never cast
        if param_name in self._encoded:
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
        else:
            module._buffers[name] = value

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
        manifest = self.quantization_config.manifest
        if self._encoder is not None:
            self._encoded = self._encoder.weights(model, self._files)
        elif manifest is not None:
            self.card = read_card(self._files[0]) if self._files else {}
            for name, entry in manifest.layers.items():
                swap_spec(model, name, entry.format, entry.meta, entry.shape)

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        absent = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
        if absent:
            raise StoreError(f"the {'model' if self._encoder else 'artifact'} lacks the tensor {absent[0]}")
        if self._encoder is not None:
            manifest, self.card = self._encoder.compress(model, _bar)
            self.quantization_config = SdvqConfig.of(manifest)
            self._encoder, self._encoded = None, ()
        self.settle(model, self._dtype, frozenset(model.state_dict()))
        choose_mode(model, self._dtype)
        return model

    def settle(self, model: Any, dtype: torch.dtype, names: frozenset[str]) -> None:
        """What every compressed model has, however it came about. names: of its tensors."""
        for _, layer in quantized_layers(model):
            layer.dtype = dtype
        self.names = names
        model.register_to_config(quantization_config=self.quantization_config)
        adopt(model)

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Kept tensors go back to float16, as they came, so that the saved folder is the artifact again."""
        return halves(state_dict), dict(self.card)

    def _dequantize(self, model: Any) -> Any:
        for name, layer in list(quantized_layers(model)):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.float_layer())
        delattr(model, SHARED_PREFIX.rstrip("."))
        own = {name: value for name, value in model.config.items() if name != "quantization_config"}
        model._internal_dict = FrozenDict(own)
        return model

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True  # adapters beside the codes

    @property
    def is_compileable(self) -> bool:
        return True


def make_native(
    model: Any, config: SdvqConfig, card: Mapping[str, str], dtype: torch.dtype, names: frozenset[str]
) -> None:
    """Let diffusers take `model`, whose layers are compressed already, for one that it has loaded itself.

    names: of its tensors.
    """
    quantizer = SdvqQuantizer(config)
    quantizer.card = dict(card)
    model.is_quantized, model.quantization_method, model.hf_quantizer = True, config.quant_method, quantizer
    quantizer.settle(model, dtype, names)


def register(known: Any) -> None:
    """Name the method in `diffusers.quantizers.auto`."""
    known.AUTO_QUANTIZER_MAPPING["sdvq"] = SdvqQuantizer
    known.AUTO_QUANTIZATION_CONFIG_MAPPING["sdvq"] = SdvqConfig


def _bar(items: Iterable[Any], total: int) -> Iterable[Any]:
    """`items`, with diffusers' progress bar where it has not been disabled."""
    found: Iterable[Any] = logging.tqdm(items, total=total, desc="Compressing layers")
    return found


register(auto)
