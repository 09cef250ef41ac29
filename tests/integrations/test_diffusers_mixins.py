"""diffusers' own checks of a quantization method, where its git checkout is at hand: SDVQ_DIFFUSERS=folder.

They are in diffusers' repository only (tests/models/testing_utils/quantization.py, Apache-2.0); none of them is copied
here. docs/diffusers.md lists what passes, and our own tests check the same. Their marks are not ours:
`pytest THIS_FILE -o addopts= -W ignore::pytest.PytestUnknownMarkWarning -W ignore::FutureWarning`
"""

import importlib
import os
import sys
from types import MappingProxyType

import pytest
import torch
from diffusers import UNet2DConditionModel
from native_cases import NANO
from torch import nn

from sdvq_core import SdvqConfig
from sdvq_core.nn import QuantizedLayer

CHECKOUT = os.environ.get("SDVQ_DIFFUSERS", "")
if not CHECKOUT:
    pytest.skip("needs SDVQ_DIFFUSERS, the folder of diffusers' git checkout", allow_module_level=True)
sys.path.insert(0, CHECKOUT)
checks = importlib.import_module("tests.models.testing_utils.quantization")
for mixin in (checks.QuantizationTesterMixin, checks.QuantizationCompileTesterMixin):
    mixin.pytestmark = []  # they ask for an accelerator, which we do not need
pytestmark = pytest.mark.filterwarnings("default")

CONFIG = {"recipe": "rvq:bits=3"}
WIDE = {"recipe": "rtn:bits=4"}


class Case:
    """The bundled UNet, compressed while it loads."""

    model_class = UNet2DConditionModel
    pretrained_model_name_or_path = str(NANO)
    pretrained_model_kwargs = MappingProxyType({"subfolder": "unet"})
    sharded_serialization_config = CONFIG

    def _create_quantized_model(self, config_kwargs, **extra):
        options = {**self.pretrained_model_kwargs, "quantization_config": SdvqConfig(**config_kwargs), **extra}
        return self.model_class.from_pretrained(self.pretrained_model_name_or_path, **options)

    def _verify_if_layer_quantized(self, name, module, config_kwargs):
        assert isinstance(module, QuantizedLayer), name

    def get_dummy_inputs(self):
        config = UNet2DConditionModel.load_config(NANO, subfolder="unet")
        width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        noise = torch.Generator().manual_seed(0)
        text = {"text_embeds": torch.randn(1, width, generator=noise), "time_ids": torch.ones(1, 6)}
        sample = torch.randn(1, config["in_channels"], 16, 16, generator=noise)
        states = torch.randn(1, 8, config["cross_attention_dim"], generator=noise)
        return {"sample": sample, "timestep": 10, "encoder_hidden_states": states, "added_cond_kwargs": text}


class TestQuantization(Case, checks.QuantizationTesterMixin):
    """What every method of diffusers is checked for."""

    @pytest.mark.parametrize("config", [CONFIG, WIDE], ids=["rvq", "rtn"])
    @pytest.mark.parametrize(
        "check",
        [
            "quantization_num_parameters", "quantization_inference", "quantization_lora_inference",
            "quantization_config_serialization", "original_dtype", "keep_modules_in_fp32", "quantization_device_map",
            "quantization_cpu_device_map", "dequantize", "quantization_training",
        ],
    )  # fmt: skip
    def test_check(self, check, config):
        getattr(self, f"_test_{check}")(config)

    def test_memory(self):
        self._test_quantization_memory_footprint(CONFIG, expected_memory_reduction=7)

    def test_serialization(self, tmp_path):
        self._test_quantization_serialization(CONFIG, tmp_path)

    def test_modules_to_not_convert(self):
        self._test_quantization_modules_to_not_convert(CONFIG, ["to_k", "mid_block"])

    @pytest.mark.xfail(reason="VQDM's rule keeps the layers of the time embedding in 16 bits", strict=True)
    def test_every_linear_layer(self):
        self._test_quantized_layers(CONFIG)

    @pytest.mark.xfail(reason="codes keep their dtype, so casting is allowed, not refused", strict=True)
    def test_dtype_assignment(self):
        self._test_quantization_dtype_assignment(CONFIG)

    def test_quantized_layers_are_linear(self):
        model = self._create_quantized_model(CONFIG)
        assert any(isinstance(module, nn.Linear) and isinstance(module, QuantizedLayer) for module in model.modules())


class TestCompile(Case, checks.QuantizationCompileTesterMixin):
    """The same under torch.compile."""

    def test_whole_graph(self):
        self._test_torch_compile(WIDE)

    def test_with_group_offload(self):
        self._test_torch_compile_with_group_offload(WIDE)
