"""Orders for a pipeline that is loaded already, where a test needs no engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdvq_core.arms import Arm
from sdvq_core.encoding import ModuleWeights
from sdvq_core.plan import CompressionPlan
from sdvq_core.production import Order
from sdvq_core.store import Unfinished


def an_order(base: Any, plan: CompressionPlan, arm: Arm, data: Path) -> Order:
    """What `arm` makes of `base`; layers that are finished are kept below `data`."""
    weights, config, unfinished = ModuleWeights(base.unet), dict(base.unet.config), Unfinished(data / "unfinished")
    made = (base.source, base.fingerprint, weights, config, lambda: base, plan, arm, data, unfinished, base.device)
    return Order(*made)
