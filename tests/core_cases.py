"""What the tests of the core share: awkward weights, statistics, errors, and a tiny UNet of SDXL's architecture."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sdvq_core import CompressionPlan, Rule, compress
from sdvq_core.diffusion.quiet import quiet
from sdvq_core.metrics.weights import relative_mse
from sdvq_core.plan import vqdm_rules
from sdvq_core.quantizers import Quantizer, catalogue, make
from sdvq_core.records import BaseInfo, LayerStats
from sdvq_core.store import Artifact, LayerEntry, Manifest
from sdvq_core.store.artifact import StoredTensors, digest

NAMES = tuple(info.name for info in catalogue())
BITS = [(info.name, bits) for info in catalogue() for bits in info.bit_widths]


def gaussian(shape: Sequence[int], seed: int = 0, scale: float = 0.05) -> Tensor:
    """Independent normal weights."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def heavy_tailed(shape: Sequence[int], seed: int = 0) -> Tensor:
    """Weights of Student's t distribution with three degrees of freedom."""
    count = math.prod(shape)
    normal = gaussian((4, count), seed, 1.0)
    return (normal[0] / normal[1:].square().mean(0).sqrt()).reshape(*shape) * 0.02


def stats_for(weight: Tensor, correlated: bool = False, seed: int = 7) -> LayerStats:
    """Second moment of inputs whose columns differ a hundredfold in power, and that are correlated or not."""
    n = weight[0].numel()
    power = torch.logspace(-1, 1, n)[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    if not correlated:
        return LayerStats(torch.diag(power), 1000)
    mix = torch.eye(n) + gaussian((n, n), seed, 1 / math.sqrt(n))
    inputs = gaussian((4 * n, n), seed + 1, 1.0) @ mix * power.sqrt()
    return LayerStats(inputs.T @ inputs / len(inputs), len(inputs))


def quantizer(name: str, bits: float | None = None, **knobs: int | float | str) -> Quantizer:
    return make({"name": name, **({} if bits is None else {"bits": bits}), **knobs})


def error(weight: Tensor, found: Quantizer, stats: LayerStats | None = None) -> float:
    """|Wq - W|^2 / |W|^2."""
    return relative_mse(weight, found.quantize(weight, stats).dequantize())


UNET_CONFIG = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 1],
    "attention_head_dim": [1, 2],
    "cross_attention_dim": 24,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 72,
    "norm_num_groups": 8,
}


def tiny_unet(seed: int = 0) -> nn.Module:
    """A UNet of SDXL's kind with 260,148 random weights, in evaluation mode."""
    with quiet():
        from diffusers import UNet2DConditionModel

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return UNet2DConditionModel.from_config(dict(UNET_CONFIG)).eval().requires_grad_(False)


def run_unet(unet: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    """The UNet's answer to fixed inputs."""
    conditions = {"text_embeds": gaussian((2, 24), 3, 1.0).to(dtype), "time_ids": torch.ones(2, 6, dtype=dtype)}
    inputs = [gaussian((2, 4, 8, 8), 1, 1.0).to(dtype), torch.tensor(500)]
    with torch.no_grad():
        return unet(
            *inputs, encoder_hidden_states=gaussian((2, 5, 24), 2, 1.0).to(dtype), added_cond_kwargs=conditions
        )[0]


def tiny_artifact(
    found: Quantizer | Sequence[Rule], unet: nn.Module | None = None, stats: Mapping[str, LayerStats] | None = None
) -> tuple[Artifact, CompressionPlan]:
    """The tiny UNet compressed by one quantizer (on VQDM's layers) or by rules, and the plan it was made by."""
    model = unet or tiny_unet()
    plan = CompressionPlan.resolve(model, vqdm_rules(found) if isinstance(found, Quantizer) else found)
    results = list(compress(model, plan, stats))
    weights = {result.record.name: result.tensor for result in results}
    kept = {name: model.state_dict()[name].half() for name in plan.kept}
    layers = {name: LayerEntry(item.format, item.shape, item.meta) for name, item in weights.items()}
    manifest = Manifest(
        BaseInfo("tiny", "0123456789abcdef"),
        str(found),
        layers,
        plan.fallbacks,
        digest(StoredTensors(weights, kept)),
    )
    records = tuple(result.record for result in results)
    return Artifact(UNET_CONFIG, manifest, weights, kept, records, {"sdvq": "test"}), plan


def file_digest(folder: Path) -> str:
    """SHA-256 over every file of a folder."""
    state = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            state.update(path.name.encode() + path.read_bytes())
    return state.hexdigest()
