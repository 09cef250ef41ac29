"""Layer statistics H = E[x x^T], gathered by forward hooks over prompts x timesteps of real sampling trajectories.

The room drives no sampler: the caller hands in trajectories that call the model, with both guidance halves or one.
"""

from sdvq_core.calibration.gather import Gatherer, collect
from sdvq_core.calibration.here import Here, Survey
from sdvq_core.calibration.sequential import GroupStats, block_groups, collect_sequential
from sdvq_core.calibration.settings import (
    DEFAULT_ROWS,
    CalibrationSettings,
    early_weights,
    read_prompts,
    timestep_weights,
)
from sdvq_core.calibration.sharing import SharedInput, Trajectory, shared_inputs
from sdvq_core.calibration.spread import Spread, Workers

__all__ = [
    "DEFAULT_ROWS",
    "CalibrationSettings",
    "Gatherer",
    "GroupStats",
    "Here",
    "SharedInput",
    "Spread",
    "Survey",
    "Trajectory",
    "Workers",
    "block_groups",
    "collect",
    "collect_sequential",
    "early_weights",
    "read_prompts",
    "shared_inputs",
    "timestep_weights",
]
