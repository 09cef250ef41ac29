"""Small reports and details for the figures."""

from __future__ import annotations

from sdvq_core.jobs import Histogram, LayerDetail
from sdvq_core.records import BaseInfo, LayerRecord, Ledger, Report

NAMES = (
    "conv_in",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2",
    "up_blocks.0.resnets.0.conv_shortcut",
    "mid_block.attentions.0.proj_in",
)


def report(recipe: str = "rvq:bits=3", error: float = 0.02) -> Report:
    layers = tuple(
        LayerRecord(name, "conv2d" if "conv" in name else "linear", (8, 16), recipe, 3.0, 100 * place, error / place)
        for place, name in enumerate(NAMES, 1)
    )
    exact = LayerRecord("up_blocks.2.resnets.0.conv2", "conv2d", (8, 8, 3, 3), recipe, 16.0, 1152, 0.0)
    ledger = Ledger(10_000, 9_000, {"codes": 3000, "codebooks": 100, "scales": 50, "kept": 2000}, 5400)
    return Report("/a", BaseInfo("nano", "f"), recipe, ledger, (*layers, exact), 1.0)


def detail(arm: str = "rvq:bits=3", books: int = 2) -> LayerDetail:
    histogram = Histogram((-1.0, -0.5, 0.0, 0.5, 1.0), (1, 5, 6, 2), (0, 6, 6, 2))
    usage = tuple((40, 20, 4, 0) for _ in range(books))
    return LayerDetail(arm, NAMES[1], histogram, (-0.5, 0.5), usage, tuple(2.9 for _ in range(books)), {"scale": "row"})
