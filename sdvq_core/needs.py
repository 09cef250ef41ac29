"""What must still be done before an arm can draw: said before the click, from what is kept on the disk."""

from __future__ import annotations

from sdvq_core import statistics, tuning
from sdvq_core.arms import Arm
from sdvq_core.diffusion.sources import at_hand, find_source
from sdvq_core.engine import Engine
from sdvq_core.jobs import Work


def needs(engine: Engine, model: str, arm: Arm) -> tuple[Work, ...]:
    """The stages in their order; none for what is at hand. A model that needs a download is taken as new."""
    if arm.peer is not None:
        return () if engine.report(model, arm) else (Work("quantize", 0, arm.peer.package),)
    source = find_source(model)
    here = at_hand(source)
    if not arm.compresses or (here and engine.cached(model, arm) is not None):
        return ()
    plan = engine.plan(model, arm)
    base = engine.fingerprint(model) if here else ""
    missing, untried = statistics.missing_layers(source, base, plan, engine.data, engine.calibration), 0
    if arm.target is not None and engine.rules(model, arm) is None:
        untried = len(tuning.unmeasured(source, base, arm.target, engine.data, engine.calibration))
    stages = (
        Work("calibrate", len(missing)),
        Work("allocate", untried),
        Work("compress", len(plan.assignments)),
        Work("distil", arm.distil.updates if arm.distil else 0),
    )
    return tuple(stage for stage in stages if stage.count)
