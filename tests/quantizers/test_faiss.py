"""`aq` against faiss' ResidualQuantizer with its default settings, on the weights of a real layer, at equal bytes."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from sdvq_core.diffusion.fingerprint import unet_files
from sdvq_core.diffusion.sources import find_source
from sdvq_core.grouping import from_groups, to_groups
from sdvq_core.metrics.weights import relative_mse
from sdvq_core.quantizers import parse

faiss = pytest.importorskip("faiss", reason="pip install faiss-cpu")
LAYERS = ("mid_block.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj")


def real_weight(layer: str) -> torch.Tensor:
    name = f"{layer}.weight"
    for path in unet_files(find_source("nano")):
        with safe_open(path, "pt") as file:
            if name in file.keys():  # noqa: SIM118 - not a dict
                return file.get_tensor(name).float()
    raise AssertionError(f"nano has no {name}")


def by_faiss(weight: torch.Tensor, books: int) -> torch.Tensor:
    """Rows are normalised and scales fitted to the decoded rows, as ours are, so that only the codes differ."""
    groups = to_groups(weight, 8)  # [O, G, 8]
    scale = groups.flatten(1).square().mean(1).sqrt().half().float()[:, None, None]  # [O, 1, 1]
    points = (groups / scale).reshape(-1, 8).numpy()
    coder = faiss.ResidualQuantizer(8, books, 8)
    coder.train(points)
    decoded = torch.from_numpy(coder.decode(coder.compute_codes(points))).reshape(groups.shape)
    rows = (groups * decoded).flatten(1).sum(1) / decoded.square().flatten(1).sum(1)
    return from_groups(decoded * rows.half().float()[:, None, None], weight.shape)


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("books", [2, 3])
def test_aq_is_not_above_faiss(layer: str, books: int) -> None:
    weight = real_weight(layer)
    ours = parse(f"aq:bits={books},share=layer").quantize(weight)
    error, other = relative_mse(weight, ours.dequantize()), relative_mse(weight, by_faiss(weight, books))
    print(f"{layer} {books}x8: aq {error:.5f}, faiss {other:.5f}, ratio {error / other:.3f}")  # noqa: T201 - the figure
    assert error <= other
